"""Damaged files by the million for everything that reads them: an error of ours, or a sound result.

    PYTHONPATH=. python tests/attacks/fuzz_readers.py --inputs 1000000 --seed 1

Sound files are taken apart, changed in their structure (fields dropped, doubled, renamed, of other
types, sizes beyond measure) or in their bytes, and read. An input fails that raises anything but an
error of this package, that takes longer than five seconds, or more memory than four times the file
and 16 MB (tracemalloc; every 50th input, and every large one). A failing input is kept and its number
printed; --only NUMBER makes it again.
"""

import argparse
import base64
import contextlib
import copy
import json
import logging
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections import Counter
from pathlib import Path

from adapters_hub.errors import AdaptersHubError
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.adapter_file import AdapterInfo, read_adapter
from adapters_hub.library.blend_file import BlendFile
from adapters_hub.library.checks import with_card
from adapters_hub.library.library import Library
from adapters_hub.library.trust import TrustPolicy
from adapters_hub.sharing.doctor import examine
from adapters_hub.sharing.importing import import_adapters
from adapters_hub.sharing.signing import new_key

SECONDS = 5
ROOM = 16 << 20
MEASURE_EVERY = 50
LARGE_EVERY = 5000
STEM = "base_model.model.layers.0.q_proj.lora_"

CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
    "bias": "none", "base_model_name_or_path": "org/base", "alpha_pattern": {"q_proj": 8},
    "rank_pattern": {}, "modules_to_save": None, "task_type": "CAUSAL_LM", "use_rslora": False,
    "init_lora_weights": True, "auto_mapping": None, "revision": None, "peft_version": "0.21.0",
}  # fmt: skip
INFO = {
    "version": 1, "name": "de", "language": "de", "domain": "hotel", "task": "classification",
    "labels": ["a", "b"], "metrics": {"f1": 0.5}, "over": ["en"], "prompts": {"query": "q: "},
    "pair_weights": {"de": {"weight": 0.5, "hash": None, "task": None, "metric": "f1", "alone": 0.1,
                            "together": 0.2, "rows": 3}},
    "rank": 2, "hash": "sha256:" + "0" * 64, "lora": CONFIG, "fingerprint": "tiny-2L-8-00",
}  # fmt: skip
CARD = (
    "---\nlanguage:\n- de\nlicense: mit\nbase_model: org/base\ntags: [lora, 'domain:hotel']\n"
    "model-index:\n- name: x\n  results: [{task: {type: t}, metrics: [{value: 0.5}]}]\n---\n# de\n"
)
BLEND = {
    "format": "adapters_hub.blend", "version": 1, "backbone": "starter", "fingerprint": "q-1",
    "layers": ["layers.0", "layers.1"],
    "terms": [{"name": "da", "hash": "sha256:" + "0" * 64, "weight": 0.9},
              {"name": "hotel", "hash": None, "weight": [1.1, 0.8]}],
    "method": "gradient", "task": "language-modeling", "rows": 32, "seed": 0, "loss_before": 2.5,
    "loss_after": 2.4,
}  # fmt: skip
STATEMENT = {
    "_type": "https://in-toto.io/Statement/v1", "subject": [{"name": "a", "digest": {"sha256": "0"}}],
    "predicateType": "https://model_signing/signature/v1.0",
    "predicate": {"serialization": {"method": "files", "hash_type": "sha256"},
                  "resources": [{"name": "x", "digest": "0" * 64, "algorithm": "sha256"}]},
}  # fmt: skip
BUNDLE = {
    "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
    "verificationMaterial": {"publicKey": {"hint": "0" * 64}, "tlogEntries": []},
    "dsseEnvelope": {"payload": base64.b64encode(json.dumps(STATEMENT).encode()).decode(),
                     "payloadType": "application/vnd.in-toto+json",
                     "signatures": [{"sig": "MEUCIQ==", "keyid": ""}]},
}  # fmt: skip
POLICY = 'keys: {ops: ops.pub}\nadapters:\n  hotel: [ops]\n  "de*": unsigned\n  "*": ops\n'

ODD = [
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**53, 2**63, 2**64, 10**400, -(10**400), 0.5, 1e308,
    float("nan"), float("inf"), -float("inf"), "", "x", "\x00", "\ud800", "\n", "ä", "😀", "a" * 300,
    "../x", "/etc/passwd", "no", "[", "(a|a)*b", "(" * 300, ".*" * 30, [], {}, [[]], [None], ["x"],
    [1, 2], {"a": 1}, {"": ""}, {"\ud800": 1}, "F32", "BF16", "F8_E4M3", "LORA", "DORA", 1.5, "16",
]  # fmt: skip
TOKENS = [
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\\u", b"\\ud800", b"\x00", b"\xff", b"\xc3", b"---\n",
    b"- ", b"? ", b"&a ", b"*a", b"!!python/name:os.system ", b"<<: ", b"| ", b"> ", b"\t", b"\r\n", b"e999",
    b"-", b"9" * 30, b"NaN", b"null", b"true", b"  ", b"#", b"%YAML 1.1\n", b"\xef\xbb\xbf", b"PK\x03\x04",
]  # fmt: skip


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def header():
    """A sound header of one layer, for 56 bytes of data."""
    return {
        "__metadata__": {"format": "pt"},
        f"{STEM}A.weight": entry("F32", [2, 3], 0, 24),
        f"{STEM}B.weight": entry("F32", [4, 2], 24, 56),
    }


def odd(rng):
    return copy.deepcopy(rng.choice(ODD))


def changed(rng, data, times=None):
    """A JSON value with some of its parts exchanged, dropped, doubled or renamed."""
    data = copy.deepcopy(data)
    for _ in range(times or rng.choice((1, 1, 1, 2, 3, 6))):
        places = [*_places(data)]
        if not places:
            return odd(rng)
        holder, key = rng.choice(places)
        act = rng.randrange(8)
        if act == 0:
            del holder[key]
        elif act == 1 and isinstance(holder, dict):
            holder[rng.choice((*TEXTS, str(key) + "x"))] = holder.pop(key)
        elif act == 2 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = odd(rng)
        elif act == 3 and isinstance(holder, list):
            holder.extend(holder[:50] * rng.choice((1, 2, 20)))
        elif act == 4:
            other, its = rng.choice(places)
            with contextlib.suppress(KeyError, IndexError, RecursionError):
                holder[key] = copy.deepcopy(other[its])
        elif act == 5:
            depth = rng.choice((3, 50, 300))
            holder[key] = json.loads("[" * depth + "1" + "]" * depth)
        else:
            holder[key] = odd(rng)
    return data


TEXTS = [value for value in ODD if isinstance(value, str)]


def _places(data):
    waiting = [data]
    while waiting:
        holder = waiting.pop()
        keys = holder.keys() if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])


def written(rng, data):
    """JSON bytes, sometimes with a field twice, or as no UTF-8."""
    try:
        text = json.dumps(data, ensure_ascii=rng.random() < 0.8)
    except RecursionError:  # nested by several changes
        text = '{"x":' * 2000 + "}" * 2000
    if rng.random() < 0.05 and "," in text:
        text = text.replace(",", rng.choice((",,", ', "r": 3,', ";")), 1)
    return text.encode("utf-8", errors="surrogatepass")


def damaged(rng, raw, times=None):
    """Bytes with some flipped, cut, doubled or put in."""
    raw = bytearray(raw)
    for _ in range(times or rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(raw) + 1)
        act = rng.randrange(6)
        if act == 0 and raw:
            raw[at - 1] ^= 1 << rng.randrange(8)
        elif act == 1:
            del raw[at:]
        elif act == 2:
            del raw[at : at + rng.randrange(1, 9)]
        elif act == 3:
            raw[at:at] = raw[at : at + rng.randrange(1, 40)] * rng.choice((1, 3, 30))
        elif act == 4:
            raw[at:at] = rng.choice(TOKENS) * rng.choice((1, 1, 2, 40))
        else:
            raw[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(raw)


def maybe(rng, raw, chance=0.3):
    return damaged(rng, raw) if rng.random() < chance else raw


def tensors(rng, table=None, metadata=None):
    """A safetensors file, its header changed in structure, in bytes, or both."""
    table = table or header()
    if metadata is not None:
        table["__metadata__"]["adapters_hub"] = metadata
    elif rng.random() < 0.8:
        table = changed(rng, table)
    raw = maybe(rng, written(rng, table))
    length = len(raw) if rng.random() < 0.95 else rng.choice((0, 1, 2**32, 2**64 - 1, len(raw) + 8))
    data = struct.pack("<14f", *(rng.choice((0.0, 1.0, -2.5, 1e-8, 1e30)) for _ in range(14)))
    if rng.random() < 0.3:
        data = damaged(rng, data)
    return maybe(rng, struct.pack("<Q", length) + raw + data, 0.1)


def sound_tensors():
    raw = json.dumps(header()).encode()
    return struct.pack("<Q", len(raw)) + raw + struct.pack("<14f", *[0.5] * 14)


def card(rng):
    return damaged(rng, CARD.encode(), rng.choice((1, 2, 4, 9)))


def large(rng, kind):
    """A few hundred kilobytes to some megabytes, made to take many times as much, or for ever."""
    size = rng.choice((300_000, 1_000_000, 3_000_000))
    piece = rng.choice(["[],", "{},", "1,", '"",', '{"a":1},', '["a"],', "[[", '{"a":', "😀", "- ", "\n", "a: b\n",
                        "&a [", "? ", '"a":"b",', "9", "\\u0000", " ", "*a,", "!!x "])  # fmt: skip
    body = (piece * (size // len(piece.encode()))).encode()
    if kind == "card":
        return b"---\na: [" + body + b"]\n---\n"
    start, end = rng.choice(
        ((b"[", b"1]"), (b'{"a":[', b"1]}"), (b'{"peft_type":"LORA","x":[', b"1]}"))
    )
    raw = start + body + end
    if kind != "weights":
        return raw
    if rng.random() < 0.5:
        names = json.dumps({f"{n}": entry("F32", [1], 4 * n, 4 * n + 4) for n in range(size // 60)})
        raw = names.encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(rng.choice((0, 8, size)))


def doctor(folder):
    report = examine(folder)
    f"{report}{json.dumps(report.to_json(), ensure_ascii=False)}".encode()  # which can be shown


def bring_in(folder):
    for row in import_adapters(Library(folder.parent / "imported"), folder, replace_existing=True):
        f"{row}{json.dumps(row.to_json(), ensure_ascii=False)}".encode()


def weights_of(folder):
    files = read_adapter(folder)
    tensorfile.inspect(files.weights, files.header)


def lone(folder):
    weights_of(folder / "adapter_model.safetensors")


def front(folder):
    with_card(AdapterInfo("x"), folder)


def policy(folder):
    read = TrustPolicy.read(folder)
    if read is not None:
        for name in ("hotel", "de-AT", "x"):
            read.keys(name)


def signature(folder):
    from adapters_hub.library.signatures import compare, read_signature

    _, signed = read_signature(folder, [ANY])
    compare(folder, signed)


class AnyKey:
    """A key that fits all signatures, so that what is behind them is read."""

    digest = "0" * 64

    def signed(self, signature, message):
        return True


ANY = AnyKey()
NAMES = {"weights": "adapter_model.safetensors", "config": "adapter_config.json", "card": "README.md",
         "blend": "x.blend.json", "signature": "model.sig", "policy": "trust.yaml", "index": ".index.json"}  # fmt: skip


def bundle(rng):
    data = json.loads(json.dumps(BUNDLE))
    if rng.random() < 0.6:
        payload = maybe(rng, written(rng, changed(rng, STATEMENT)))
        data["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    else:
        data = changed(rng, data)
    return maybe(rng, written(rng, data))


def config(rng):
    return maybe(rng, written(rng, changed(rng, CONFIG)))


def metadata(rng):
    info = maybe(rng, written(rng, changed(rng, INFO))).decode(errors="replace")
    return tensors(rng, metadata=info)


def index(rng):
    info = {key: value for key, value in INFO.items() if key not in ("version", "lora")}
    data = {"x": {"state": [1, 2, 3, 4], "info": info}}
    return maybe(rng, written(rng, changed(rng, data)))


def add(folder):
    """What was added must be read."""
    library = Library(folder.parent / "library")
    name = library.add(folder, name="y", replace_existing=True).name
    try:
        library.read(name)
    except AdaptersHubError as error:
        raise ValueError(f"what was added is not read: {error}") from None


TARGETS = {  # name → share, which file, how it is made, how it is read
    "weights": (22, "weights", tensors, weights_of),
    "lone file": (18, "weights", metadata, lone),
    "configuration": (22, "config", config, weights_of),
    "card": (6, "card", card, front),
    "blend": (12, "blend", lambda rng: maybe(rng, written(rng, changed(rng, BLEND))),
              lambda folder: BlendFile.read(folder / "x.blend.json")),
    "signature": (8, "signature", bundle, signature),
    "policy": (3, "policy", lambda rng: damaged(rng, POLICY.encode()), policy),
    "doctor: weights": (3, "weights", tensors, doctor),
    "doctor: configuration": (3, "config", config, doctor),
    "doctor: card": (1, "card", card, doctor),
    "library": (2, "config", config, lambda folder: Library(folder.parent).list()),
    "index": (2, "index", index, lambda folder: Library(folder).list()),
    "add: weights": (0.4, "weights", metadata, add),
    "add: configuration": (0.4, "config", config, add),
    "import: weights": (0.2, "weights", tensors, bring_in),
    "import: configuration": (0.2, "config", config, bring_in),
}  # fmt: skip


class Failure(Exception):
    """An input that was not refused as it should be."""


class Fuzzer:
    """Makes inputs by number, and reads them in a folder."""

    def __init__(self, root, seed=0, large_every=LARGE_EVERY):
        self.large_every = large_every
        self.root = Path(root)
        self.folder = self.root / "x"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seed = seed
        self.sound = {"weights": sound_tensors(), "config": json.dumps(CONFIG).encode()}
        with contextlib.suppress(AdaptersHubError):  # without the extra, policies are refused
            os.rename(new_key(self.root / "ops")[1], self.folder / "ops.pub")
        for name, raw in self.sound.items():
            (self.folder / NAMES[name]).write_bytes(raw)
        self.counts = Counter()
        self.worst = 0.0
        for target in TARGETS:  # so that imports at first use are not counted as memory
            self.read(target, self.make(target, random.Random(0)))

    def one(self, number):
        """Make and read one input; raises `Failure`."""
        rng = random.Random(self.seed * 1_000_003 + number)
        target = rng.choices([*TARGETS], [share for share, *_ in TARGETS.values()])[0]
        big = number % self.large_every == self.large_every - 1
        big = big and target != "index"  # which nobody else wrote
        raw = large(rng, TARGETS[target][1]) if big else self.make(target, rng)
        return self.check(target, raw, measure=big or number % MEASURE_EVERY == 0)

    def make(self, target, rng):
        return TARGETS[target][2](rng)

    def check(self, target, raw, measure=False):
        """Read an input; raises `Failure` with the reason."""
        size = len(raw) + sum(map(len, self.sound.values()))
        if measure:
            tensorfile._layout.cache_clear()
            tracemalloc.start()
        signal.setitimer(signal.ITIMER_REAL, SECONDS * (5 if measure else 1))
        try:
            taken = self.read(target, raw)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            peak = tracemalloc.get_traced_memory()[1] if measure else 0
            if measure:
                tracemalloc.stop()
        self.counts[target, taken] += 1
        self.worst = max(self.worst, peak / (4 * size + ROOM))
        if peak > 4 * size + ROOM:
            raise Failure(f"{target}: {peak / 1e6:.1f} MB for an input of {len(raw) / 1e6:.2f} MB")
        return taken

    def read(self, target, raw):
        _, name, _, reader = TARGETS[target]
        path = self.folder / NAMES[name]
        path.write_bytes(raw)
        try:
            reader(self.folder)
            return "read"
        except AdaptersHubError as error:
            if not _shown(str(error)):
                raise Failure(f"{target}: an error that cannot be shown: {error!r}") from error
            return "refused"
        except Late:
            raise Failure(f"{target}: no end after {SECONDS} s") from None
        except Exception as error:
            raise Failure(f"{target}: {error!r}") from error
        finally:
            if name in self.sound:
                path.write_bytes(self.sound[name])
            else:
                path.unlink()


def _shown(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Late(BaseException):
    """The time is over."""


def _late(number, frame):
    raise Late


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0, help="the number to begin with [0]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large-every", type=int, default=LARGE_EVERY, help=f"[{LARGE_EVERY}]")
    parser.add_argument("--only", type=int, help="make and read this one input, and show its error")
    parser.add_argument("--most", type=int, default=20, help="stop after so many failures [20]")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _late)
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    root = tempfile.mkdtemp(prefix="fuzz-", dir=shared)
    try:
        fuzzer = Fuzzer(root, options.seed, options.large_every)
        if options.only is not None:
            print(fuzzer.one(options.only))
            return 0
        failures, begun = 0, time.monotonic()
        for number in range(options.first, options.first + options.inputs):
            try:
                fuzzer.one(number)
            except Failure as failure:
                failures += 1
                print(f"input {number}: {str(failure)!a}", flush=True)
                if failure.__cause__ is not None:
                    traceback.print_tb(failure.__cause__.__traceback__.tb_next, limit=-2)
                if failures >= options.most:
                    break
            if number % 50_000 == 49_999:
                print(f"{number + 1:,} inputs, {time.monotonic() - begun:.0f} s", flush=True)
        done = number + 1 - options.first
        print(f"{done:,} inputs in {time.monotonic() - begun:.0f} s, {failures} failures")
        for target in TARGETS:
            counts = {key[1]: n for key, n in fuzzer.counts.items() if key[0] == target}
            print(
                f"  {target}: {counts.get('refused', 0):,} refused, {counts.get('read', 0):,} read"
            )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"most memory: {fuzzer.worst:.0%} of what is allowed; the process: {peak:.0f} MB")
        return 1 if failures else 0
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    sys.exit(main())
