"""A short run of the fuzzer; `fuzz_readers.py` says how a million are made."""

import logging
import random
import signal

import pytest
from attacks.fuzz_readers import CONFIG, TARGETS, Failure, Fuzzer, _late, changed, large, odd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    logging.disable(logging.CRITICAL)
    old = signal.signal(signal.SIGALRM, _late)
    yield Fuzzer(tmp_path_factory.mktemp("fuzz"))
    signal.signal(signal.SIGALRM, old)
    logging.disable(logging.NOTSET)


def test_inputs_are_refused_or_read(fuzzer):
    for number in range(400):
        fuzzer.one(number)
    assert {taken for _, taken in fuzzer.counts} == {"refused", "read"}


@pytest.mark.slow
@pytest.mark.parametrize("target", [t for t in TARGETS if t != "index"])
def test_large_inputs_take_bounded_memory(fuzzer, target):
    for seed in range(3):
        fuzzer.check(target, large(random.Random(seed), TARGETS[target][1]), measure=True)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([t for t in TARGETS if ":" not in t]), st.randoms(use_true_random=False))
def test_inputs_that_hypothesis_makes_smaller(fuzzer, target, rng):
    fuzzer.check(target, fuzzer.make(target, rng))


def test_the_fuzzer_finds_what_it_looks_for(fuzzer, monkeypatch):
    def bad(folder):
        raise KeyError("x")

    def forever(folder):
        while True:
            pass

    def hungry(folder):
        bytes(60 << 20)

    monkeypatch.setattr("attacks.fuzz_readers.SECONDS", 0.1)
    for reader, what in ((bad, "KeyError"), (forever, "no end"), (hungry, "MB for an input")):
        monkeypatch.setitem(TARGETS, "weights", (*TARGETS["weights"][:3], reader))
        with pytest.raises(Failure, match=what):
            fuzzer.check("weights", b"", measure=reader is hungry)


def test_structures_are_changed_and_values_not_shared():
    rng = random.Random(0)
    before = repr(CONFIG)
    assert sum(repr(changed(rng, CONFIG)) != before for _ in range(100)) > 80
    assert repr(CONFIG) == before
    for _ in range(200):
        value = odd(rng)
        if isinstance(value, list):
            value.append(1)
    assert [] in [odd(rng) for _ in range(500)]
