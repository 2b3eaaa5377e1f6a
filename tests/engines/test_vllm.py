"""A real vLLM serves blends of a library, to a real client of OpenAI's.

It wants an environment of its own, whose Python is named by $ADAPTERS_HUB_TEST_VLLM, with vLLM and
this package in it; without a GPU, docs/serving.md says how.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_config, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import adapters_hub as ah

PYTHON = os.environ.get("ADAPTERS_HUB_TEST_VLLM")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(PYTHON is None, reason="$ADAPTERS_HUB_TEST_VLLM names no Python"),
]
BLENDS = ("one", "one + 0.5*two", "three*2 - one", "lang:sw + domain:health - 0.25*two")
TOKENS = 12
CLIENT = """
import asyncio, json, sys
import openai

url, at_once, jobs = sys.argv[1], int(sys.argv[2]), json.load(sys.stdin)

async def main():
    client = openai.AsyncOpenAI(base_url=url, api_key="-", max_retries=0, timeout=300)
    gate = asyncio.Semaphore(at_once)
    async def one(job):
        async with gate:
            try:
                got = await client.completions.create(
                    model=job["model"], prompt=job["prompt"], max_tokens=job["tokens"],
                    temperature=0, extra_body={"ignore_eos": True, "return_token_ids": True},
                )
            except openai.APIStatusError as error:
                return {"status": error.status_code, "message": str(error)}
            details = got.usage.prompt_tokens_details
            return {"status": 200, "model": got.model, "ids": got.choices[0].token_ids,
                    "cached": details.cached_tokens if details else 0}
    return await asyncio.gather(*map(one, jobs))

print(json.dumps(asyncio.run(main())))
"""


def adapter(backbone, folder, seed, *, labels=0, **options):
    """A PEFT folder with random factors."""
    if labels:
        base = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=labels)
        options = {"task_type": "SEQ_CLS", **options}
    else:
        base = AutoModelForCausalLM.from_pretrained(backbone)
    lora = LoraConfig(**{"r": 4, "target_modules": "all-linear", **options})
    model = get_peft_model(base, lora)
    generator = torch.Generator().manual_seed(seed)
    for path, parameter in model.named_parameters():
        if "lora_" in path:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of a tiny Qwen3 in float32, and the same backbone and library here."""
    root = tmp_path_factory.mktemp("served")
    config = tiny_config("qwen3")
    config.hidden_size, config.head_dim = 64, 32  # which vLLM has attention for on a CPU
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # away from zero, so that rows differ
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    backbone = root / "backbone"
    model.save_pretrained(backbone)
    tiny_tokenizer().save_pretrained(backbone)
    library = ah.Library(root / "library")
    unlike = {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}
    library.add(adapter(backbone, root / "1", 1, lora_alpha=6, **unlike), name="one", language="sw")
    few = ["q_proj", "down_proj"]
    library.add(adapter(backbone, root / "2", 2, target_modules=few), name="two")
    library.add(adapter(backbone, root / "3", 3, r=3), name="three", domain="health")
    library.add(adapter(backbone, root / "4", 4, r=24), name="wide")
    library.add(adapter(backbone, root / "5", 5, labels=3), name="classifier")
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    command = [PYTHON, "-m", "adapters_hub", "serve", "--backbone", str(backbone), "--library",
               str(library.root), "--max-loras", "4", "--max-lora-rank", "16", "--", "--port",
               str(port), "--dtype", "float32", "--max-model-len", "128", "--enforce-eager",
               "--max-num-seqs", "16", "--block-size", "32",
               "--enable-prompt-tokens-details"]  # fmt: skip
    environment = {
        **os.environ, "PYTHONPATH": str(Path(ah.__file__).parents[1]), "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1", "ADAPTERS_HUB_CACHE": str(root / "cache"),
        "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    log = root / "log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    made = SimpleNamespace(
        url=f"http://127.0.0.1:{port}", log=log.read_text, library=library, root=root,
        backbone=backbone, model=ah.load_backbone(str(backbone), library=library),
    )  # fmt: skip
    try:
        until = time.monotonic() + 420
        while not healthy(made.url):
            assert process.poll() is None, made.log()[-5000:]
            assert time.monotonic() < until, made.log()[-5000:]
            time.sleep(1)
        yield made
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def healthy(url):
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def ask(served, jobs, at_once=16):
    """Answers to (model, prompt) pairs, asked for at once by OpenAI's client."""
    wanted = [{"model": m, "prompt": p, "tokens": TOKENS} for m, p in jobs]
    done = subprocess.run(
        [PYTHON, "-c", CLIENT, f"{served.url}/v1", str(at_once)],
        input=json.dumps(wanted), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def greedy(served, blend, prompt):
    """Our own greedy tokens."""
    ids = list(prompt)
    for _ in range(TOKENS):
        with torch.no_grad():
            logits = served.model(input_ids=torch.tensor([ids]), adapters=[blend]).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def prompts(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randint(5, 200, (6 + number % 5,), generator=generator).tolist()


def test_four_blends_in_a_batch_say_what_ours_say(served):
    jobs = [(blend, prompts(n)) for n in range(3) for blend in BLENDS]
    jobs.append((str(served.backbone), prompts(0)))
    want = [greedy(served, m if m in BLENDS else None, p) for m, p in jobs]
    got = ask(served, jobs)
    assert [answer.get("ids") for answer in got] == want
    assert len({tuple(ids) for (_, p), ids in zip(jobs, want, strict=True) if p == prompts(0)}) == 5
    assert re.fullmatch(r"one \+ 0\.5\*two@[0-9a-f]{12}", got[1]["model"])


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("nobody", 404, r"no adapter for \"nobody\" .*have: .*one.*three"),
        ("one + nobody", 404, r"no adapter for \"nobody\""),
        ("one two", 404, r"cannot read the blend"),
        ("../one", 404, r"cannot read the blend"),
        ("auto", 404, r"'auto' would choose adapters for each text"),
        ("classifier", 404, r"classifier has a task head"),
        ("wide", 400, r"rank 24, for which --max-lora-rank must be 32"),
    ],
)
def test_what_cannot_be_served_is_refused_and_the_log_says_why(served, name, status, said):
    (answer,) = ask(served, [(name, prompts(0))])
    assert answer["status"] == status
    assert re.search(said, served.log())
    assert ask(served, [("one", prompts(0))])[0]["ids"] == greedy(served, "one", prompts(0))


def test_models_lists_the_library(served):
    ask(served, [("one + 0.5*two", prompts(0))])
    listed = json.load(urllib.request.urlopen(f"{served.url}/v1/models"))
    names = [card["id"] for card in listed["data"]]
    assert names[0] == str(served.backbone)
    assert {"one", "two", "three", "one + 0.5*two"} <= {*names}
    assert not {"classifier", "wide"} & {*names}
    assert len(names) == len({*names})


def test_a_replaced_adapter_is_noticed(served):
    for seed in (11, 12):
        source = adapter(served.backbone, served.root / f"changing{seed}", seed)
        served.library.add(source, name="changing", replace_existing=True)
        jobs = [(name, prompts(4) * 5) for name in ("changing", "changing + one", "one")]
        want = [greedy(served, *job) for job in jobs]
        first, again = ask(served, jobs), ask(served, jobs)
        assert [answer.get("ids") for answer in first] == want
        assert [answer["cached"] for answer in first[:2]] == [0, 0]  # what was before is not used
        assert [answer.get("ids") for answer in again] == want
        assert all(answer["cached"] >= 32 for answer in again)
    served.library.remove("changing")
    assert ask(served, [("changing", prompts(1))])[0]["status"] == 404


def test_nothing_is_wrong_or_lost_while_an_adapter_is_replaced(served):
    either = []
    for seed in (21, 22):
        source = adapter(served.backbone, served.root / f"moving{seed}", seed)
        served.library.add(source, name="moving", replace_existing=True)
        either.append(greedy(served, "moving", prompts(2)))
    assert either[0] != either[1]
    client = subprocess.Popen(
        [PYTHON, "-c", CLIENT, f"{served.url}/v1", "4"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    job = {"model": "moving", "prompt": prompts(2), "tokens": TOKENS}
    client.stdin.write(json.dumps([job] * 80))
    client.stdin.close()
    for n in range(12):
        source = served.root / f"moving{21 + n % 2}"
        served.library.add(source, name="moving", replace_existing=True)
        time.sleep(0.5)
    answers = json.loads(client.stdout.read())
    assert client.wait() == 0
    assert [answer["status"] for answer in answers] == [200] * 80
    assert all(answer["ids"] in either for answer in answers)


def test_two_hundred_requests_over_forty_names(served):
    names = [f"{1 + n / 10:g}*one - {n / 20:g}*three + two" for n in range(1, 41)]
    jobs = [(names[n % 40], prompts(n // 40)) for n in range(200)]
    want = [greedy(served, *job) for job in jobs]
    began = time.monotonic()
    got = ask(served, jobs, at_once=32)
    print(f"200 requests over 40 names: {time.monotonic() - began:.1f} s")
    assert [answer["status"] for answer in got] == [200] * 200
    assert sum(answer["ids"] != ids for answer, ids in zip(got, want, strict=True)) == 0
