"""Module patterns: what PEFT and Python would match, in bounded time."""

import random
import re

import pytest

from adapters_hub.library.peft_patterns import matches

MODULES = [
    "q", "q_proj", "my_q_proj", "layers.0.q_proj", "layers.10.q_proj", "layers.1.self.q_proj", "",
    "model.layers.3.mlp.up", "layers.3.mlp.up", "encoder.block.11.layer.0.k", "qq", "q.q.q", "a-b/c",
]  # fmt: skip
PATTERNS = [
    "q", "q_proj", "q.proj", "0.q_proj", "layers.0.q_proj", ".", "..", "", "-", "a-b/c", "b/c",
    r"layers\.\d+\.q_proj", r"layers\.\d\.q_proj", r"layers\.(0|10)\.q_proj", "(q|k)", "q|k", "q?",
    "(?:q_)?proj", "(.*layers.)?0.q_proj", r"layers\.[0-9]\..*", r"layers\.[^0-2]\.mlp\.\w+",
    "^layers.3.mlp.up", "^(model.)?layers.3.*", "^q$", "q*", "q+?", ".*", ".*?up", "(a|b||c)", "q{2}",
    r"layer.*\.\d{1,2}\..*", r"\w{2,}", "q{0,1}", "q{0}", "[a-z_]+", r"[\w.]+k", "x", "(^q|up$)",
    r"encoder\.block\.(1[01]|[2-5])\.layer\.0\.(q|k|v)", r"\S+\.\D", r"q\.q\.q", "((q)|((up)))",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_what_they_match_in_peft(pattern):
    from peft.utils.other import get_pattern_key

    found = [m for m in MODULES if matches(pattern, m)]
    assert found == [m for m in MODULES if get_pattern_key([pattern], m + "") is pattern]


def test_random_patterns_match_what_python_matches():
    rng = random.Random(0)
    pieces = [
        "a",
        "b",
        ".",
        r"\.",
        "[ab]",
        "[^b]",
        "(a|b)",
        "(a|ab|)",
        "(b.*|a)",
        r"\w",
        "^",
        "$",
        "|",
    ]
    signs = ["", "", "", "*", "+", "?", "{2}", "{1,2}", "*?"]
    checked = 0
    for _ in range(4000):
        pattern = ""
        for _ in range(rng.randint(1, 5)):
            piece = rng.choice(pieces)
            pattern += piece + (rng.choice(signs) if piece not in "^$|" and piece[0] != "(" else "")
        text = "".join(rng.choice("ab.") for _ in range(rng.randint(0, 6)))
        want = re.match(rf"(.*\.)?({pattern})$", text) is not None
        assert matches(pattern, text) == want, (pattern, text)
        checked += want
    assert checked > 500
