"""Generation: prompts, loss on the target alone, PEFT, streaming, and the recipe."""

import json
import math
import threading
from dataclasses import replace

import pytest
import torch
from conftest import TEXTS, WORDS, auto_class, in_double, learn_task
from helpers.generation import add_moved, unspoken
from helpers.recipes import launch, run
from helpers.training import assert_same
from peft import PeftModel

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, DataError, HeadError, SettingsError
from adapters_hub.inference.records import collect_records
from adapters_hub.library.adapter_file import read_adapter
from adapters_hub.tasks import make_task
from adapters_hub.tasks.generation import Generation
from adapters_hub.text.prompts import Prompt
from adapters_hub.text.tokenising import surroundings

WRITERS = ["qwen3", "gpt2", "mt5", "m2m100"]
TARGETS = ["lovely view", "rude", "the station was near", "staff clean and quiet", "很好"]


def pair(text, target, where="pairs.jsonl:1", **fields):
    return Row(text, language="en", where=where, fields={"target": target, **fields})


ROWS = [pair(text, target) for text, target in zip(TEXTS, TARGETS, strict=True)]


@pytest.fixture
def load(tiny, tmp_path):
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")


def losses(model, task, rows, adapters=None):
    examples = task.encode(rows, model.backbone)
    batch = task.collate(examples, model.backbone)
    with torch.no_grad(), model.adapted(len(rows), adapters):
        return task.loss(model, batch, []), task.count(batch)


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_a_decoders_loss_is_on_the_target_alone(kind, load, tiny):
    model, task = load(kind), Generation(prompt="{text} :")
    got, count = losses(model, task, ROWS)
    plain = auto_class(kind).from_pretrained(tiny(kind)).eval()
    tokenizer = model.backbone.tokenizer
    for row, nats, number in zip(ROWS, got, count, strict=True):
        prompt = tokenizer(f"{row.text} :")["input_ids"]
        target = tokenizer(row.fields["target"], add_special_tokens=False)["input_ids"]
        target = [*target, tokenizer.eos_token_id]
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([prompt + target])).logits[0]
        scores = logits.log_softmax(-1)
        want = -sum(scores[len(prompt) - 1 + n, token] for n, token in enumerate(target))
        torch.testing.assert_close(nats, want, atol=1e-4, rtol=1e-5)
        assert number == len(target)


@pytest.mark.parametrize("kind", ["mt5", "m2m100"])
def test_an_encoder_decoders_loss_is_transformers_own(kind, load, tiny):
    model = load(kind)
    got, count = losses(model, Generation(), ROWS)
    plain = auto_class(kind).from_pretrained(tiny(kind)).eval()
    tokenizer = model.backbone.tokenizer
    for row, nats, number in zip(ROWS, got, count, strict=True):
        inputs = tokenizer(row.text, return_tensors="pt")
        labels = tokenizer(row.fields["target"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            mean = plain(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
                labels=labels,
            ).loss  # fmt: skip
        torch.testing.assert_close(nats, mean * labels.numel(), atol=1e-4, rtol=1e-5)
        assert number == labels.numel()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_row_of_a_mixed_batch_is_that_row_alone(kind, load):
    model, task = in_double(load(kind)), Generation()
    for name in ("one", "two"):
        adapter = add_moved(model, name)
        model.add(adapter.map(lambda t: t.double()))
    blends = ["one", None, "two - one", "0.5*two", "one"]
    mixed, _ = losses(model, task, ROWS, blends)
    for row, blend, got in zip(ROWS, blends, mixed, strict=True):
        (alone,), _ = losses(model, task, [row], blend)
        torch.testing.assert_close(got, alone, atol=1e-6, rtol=1e-6)
    bare, _ = losses(model, task, ROWS)
    assert (mixed - bare)[[0, 2, 3, 4]].abs().min() > 1e-3


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_trained_loads_in_plain_peft(kind, load, tiny, tmp_path):
    """The same logits, from the class that PEFT's own task type names."""
    model = load(kind)
    adapter = add_moved(model, "one")
    path = adapter.save(tmp_path / "one")
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["task_type"] == ("SEQ_2_SEQ_LM" if kind in ("mt5", "m2m100") else "CAUSAL_LM")
    plain = PeftModel.from_pretrained(auto_class(kind).from_pretrained(tiny(kind)), path).eval()
    batch = Generation().collate(Generation().encode(ROWS, model.backbone), model.backbone)
    del batch["labels"]
    with torch.no_grad():
        want = plain(**batch).logits
        got = model(**batch, adapters="one").logits
        bare = model(**batch).logits
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    assert (got - bare).abs().max() > 1e-2
    if kind in ("mt5", "m2m100"):
        assert {site.split(".")[0] for site in adapter.factors} >= {"encoder", "decoder"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "mt5"])
def test_training_lowers_bits_and_what_is_saved_writes_the_same(kind, load):
    model, task = load(kind), Generation(prompt="the {text}")
    rows = ROWS[:4]
    examples, adapter = learn_task(model, task, rows, steps=60)
    final = task.final()
    before, after = (
        final.metrics(collect_records(model, final, examples, lambda row, b=blend: b))
        for blend in (ah.Blend(), model.resolve("hotel"))
    )
    assert after["bits"] < 0.8 * before["bits"]  # a tiny frozen head cannot say more
    assert after["chrf"] > before["chrf"]
    written = collect_records(model, final, examples, lambda row: model.resolve("hotel"))
    fields = [{"text": row.text} for row in rows]
    asked = model.generate(fields, adapters="hotel", max_new_tokens=128)
    assert [text.strip() for text in asked] == [record["written"] for record in written]
    plain = model.generate(
        [f"the {row.text}" for row in rows], adapters="hotel", max_new_tokens=128
    )
    assert plain == asked
    assert model.generate(fields[0], adapters="hotel", max_new_tokens=128) == asked[:1]
    model.library.add(adapter.save(model.library.root.parent / "kept"), name="again")
    fresh = load(kind)
    assert fresh.library.get("again").prompts == {"prompt": "the {text}"}
    assert fresh.generate(fields, adapters="again", max_new_tokens=128) == asked


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_long_decoder_prompt_loses_its_beginning(load, caplog):
    model, task = load("qwen3"), Generation(max_length=12, prompt="{text}")
    backbone = model.backbone
    long = pair(" ".join(WORDS[:12]), "lovely view")
    (example,) = task.encode([long], backbone)
    before, after = surroundings(backbone.tokenizer)
    words = backbone.tokenizer(" ".join(WORDS[:12]), add_special_tokens=False)["input_ids"]
    target = [*backbone.tokenizer("lovely view", add_special_tokens=False)["input_ids"], 3]
    room = 12 - len(target) - len(before) - len(after)
    assert example.input_ids == [*before, *words[-room:], *after, *target]
    assert "1 of 1 prompts lose their beginning: max_length=12" in caplog.text


def test_a_long_source_loses_its_end(load, caplog):
    model, task = load("mt5"), Generation(max_length=8)
    (example,) = task.encode([pair(" ".join(WORDS[:12]), "lovely view")], model.backbone)
    words = model.backbone.tokenizer(" ".join(WORDS[:12]), add_special_tokens=False)["input_ids"]
    assert example.input_ids == [2, *words[:6], 3]
    assert "1 of 1 prompts lose their end" in caplog.text


@pytest.mark.parametrize("kind", ["qwen3", "mt5"])
def test_a_target_is_never_cut(kind, load):
    model = load(kind)
    rows = [ROWS[0], pair("a", " ".join(WORDS[:9]), where="pairs.jsonl:7"), pair("b", "rude")]
    message = r"pairs.jsonl:7: field 'target' needs (\d+) tokens, and max_length=8 \(so in 1 rows"
    with pytest.raises(DataError, match=message) as caught:
        Generation(max_length=8).encode(rows, model.backbone)
    needed = int(str(caught.value).split("needs ")[1].split()[0])
    assert f"--max-length {needed} takes all" in str(caught.value)
    assert len(Generation(max_length=needed).encode(rows, model.backbone)) == 3
    with pytest.raises(DataError, match="field 'target' needs"):
        Generation(max_length=needed - 1).encode(rows, model.backbone)


def test_prompts_are_checked():
    prompt = Prompt("{{{text}}} {question}\n")
    assert prompt.fill({"text": "a", "question": 3}) == "{a} 3\n"
    with pytest.raises(DataError, match=r"x:1: field 'question' is missing, and the prompt .*text"):
        prompt.fill({"text": "a"}, "x:1")
    with pytest.raises(DataError, match=r"field 'question' is \['b'\], not text"):
        prompt.fill({"text": "a", "question": ["b"]})
    for wrong in ("{text", "{}", "{0}", "{text.__class__}", "{text[0]}", "{text!r}", "{text:>9}"):
        with pytest.raises(SettingsError, match="prompt="):
            Prompt(wrong)
    with pytest.raises(SettingsError, match="name a field in braces"):
        Prompt("no field")
    with pytest.raises(SettingsError, match="the target is what is to be written"):
        make_task("generation", prompt="{text} {target}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("a", where="p:1"), r"p:1: field 'target' is missing, and it is the text"),
        (Row("a", where="p:1", fields={"target": " "}), r"p:1: field 'target' has ' ', which is n"),
        (Row("a", where="p:1", fields={"target": 3}), r"p:1: field 'target' has 3"),
    ],
)
@pytest.mark.parametrize("kind", ["qwen3", "mt5"])
def test_rows_without_a_target_name_file_line_and_field(row, message, kind, load):
    with pytest.raises(DataError, match=message):
        Generation().encode([row], load(kind).backbone)


def test_what_cannot_write_says_so(load):
    model = load("bert")
    for call in (
        lambda: Generation().encode(ROWS, model.backbone),
        lambda: Generation().peft_task_type(model.backbone),
        lambda: model.generate("a"),
        lambda: model.stream("a"),
        lambda: model.translate("a", "en", "de"),
    ):
        with pytest.raises(BackboneError, match="an encoder, which reads a text as a whole"):
            call()
    with pytest.raises(BackboneError, match="--task generation"):
        make_task("language-modeling").encode(ROWS, load("mt5").backbone)
    assert Generation().encode([], load("qwen3").backbone) == []


def test_a_chat_template_is_kept_and_used(load):
    model = load("qwen3")
    task = Generation(prompt="{text}", chat=True)
    with pytest.raises(BackboneError, match=r"no chat template; .*leave --chat out"):
        task.encode(ROWS, model.backbone)
    model.backbone.tokenizer.chat_template = (
        "{% for m in messages %}[MASK] {{ m.role }} {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} never{% endif %}"
    )
    (example,) = task.encode(ROWS[:1], model.backbone)
    given = example.input_ids[: example.target.given]
    tokenizer = model.backbone.tokenizer
    text = f"[MASK] user {TEXTS[0]} never"
    assert given == tokenizer(text, add_special_tokens=False)["input_ids"]
    add_moved(model, "one", task)
    assert model.adapter("one").info.prompts == {"prompt": "{text}", "chat": "yes"}
    from adapters_hub.inference.generate import continuations

    got = model.generate([{"text": TEXTS[0]}], adapters="one", max_new_tokens=5)
    want = continuations(model, [model.resolve("one")], [given], {"max_new_tokens": 5})
    assert got == want
    assert got != model.generate([TEXTS[0]], adapters="one", max_new_tokens=5)


def test_a_long_chat_prompt_keeps_the_template_around_it(load):
    model = load("qwen3")
    model.backbone.tokenizer.chat_template = (
        "{% for m in messages %}[MASK] {{ m.role }} {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} never{% endif %}"
    )
    task = Generation(max_length=24, prompt="{text}", chat=True)
    (example,) = task.encode([pair(" ".join(TEXTS[:2] * 3), "rude")], model.backbone)
    given = model.backbone.tokenizer.decode(example.input_ids[: example.target.given])
    assert len(example.input_ids) == 24
    assert given.startswith("[MASK] user ")
    assert given.endswith("staff rude and slow never")


def test_a_prompt_may_name_the_label(load):
    row = replace(ROWS[0], label="rude")
    assert Generation(prompt="{label}: {text}").fields(row)["label"] == "rude"
    assert "label" not in Generation().fields(ROWS[0])


def test_two_prompts_in_a_blend_are_refused_and_one_is_exported(load, tmp_path):
    model = load("qwen3")
    add_moved(model, "one", Generation(prompt="{text} :"))
    add_moved(model, "two", Generation(prompt="{text} ."))
    with pytest.raises(HeadError, match=r"different prompts \(one: '\{text\} :', two: '"):
        model.generate([{"text": "a"}], adapters="one + two")
    assert model.generate(["a"], adapters="one + two", max_new_tokens=2)  # as it stands
    path = model.export("one", tmp_path / "out")
    info = read_adapter(path, "out").info
    assert (info.task, info.prompts) == ("generation", {"prompt": "{text} :"})
    assert "| prompt | `{text} :` |" in (path / "README.md").read_text()


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────


def test_metrics_are_the_plain_formulas(load):
    sacrebleu = pytest.importorskip("sacrebleu")
    model, task = load("qwen3"), Generation(max_new_tokens=6)
    examples = task.encode(ROWS, model.backbone)
    nats, count = losses(model, task, ROWS)
    looked = collect_records(model, task, examples, lambda row: ah.Blend())
    cheap = {"bits", "bits_per_byte", "bits_per_token", "perplexity"}  # at looks at dev
    assert set(task.metrics(looked)) == cheap
    final = task.final()
    records = collect_records(model, final, examples, lambda row: ah.Blend())
    got = final.metrics(records)
    size = sum(len(target.encode()) for target in TARGETS)
    assert got["bits"] == pytest.approx(float(nats.sum()) / math.log(2) / size, rel=1e-5)
    assert got["perplexity"] == pytest.approx(math.exp(nats.sum() / count.sum()), rel=1e-4)
    written = [record["written"] for record in records]
    assert written == [
        t.strip() for t in model.generate([f"{t}\n" for t in TEXTS], max_new_tokens=6)
    ]
    assert got["chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, [TARGETS]).score)
    names = [shown.name for shown in final.shown(model.backbone)]
    assert names == ["bits per byte", "chrF"]
    with pytest.raises(DataError, match="no targets"):
        task.metrics([])


# ── streaming ────────────────────────────────────────────────────────────────────────────────────


def streams():
    return [thread for thread in threading.enumerate() if thread.name == "adapters_hub.stream"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("blend", [None, "one - 0.5*two"])
def test_streamed_pieces_are_what_is_generated(kind, blend, load):
    model = load(kind)
    for name in ("one", "two"):
        add_moved(model, name)
    options = {"max_new_tokens": 24, "suppress_tokens": unspoken(model)}
    for text in (TEXTS[0], TEXTS[4], {"text": TEXTS[1]}):
        (want,) = model.generate([text], adapters=blend, **options)
        pieces = list(model.stream(text, adapters=blend, **options))
        assert "".join(pieces) == want
        assert len(pieces) > 3
    assert not streams()


def test_a_stream_has_its_own_plan_and_leaves_ours_alone(load):
    """The thread that writes follows the blend, the one that reads stays as it was."""
    model = load("qwen3")
    add_moved(model, "one")
    options = {"max_new_tokens": 16, "suppress_tokens": unspoken(model)}
    (bare,) = model.generate([TEXTS[0]], **options)
    (want,) = model.generate([TEXTS[0]], adapters="one", **options)
    assert bare != want
    read = model.stream(TEXTS[0], adapters="one", **options)
    first = next(read)
    assert model.bank.current() is None
    assert model.generate([TEXTS[0]], **options) == [bare]
    assert first + "".join(read) == want


def test_a_stream_that_is_left_stops(load):
    model = load("qwen3")
    steps = []
    hook = model.backbone.model.register_forward_hook(lambda *_: steps.append(1))
    options = {"max_new_tokens": 20_000, "suppress_tokens": unspoken(model)}
    for _ in model.stream(TEXTS[0], **options):
        break
    assert not streams()
    assert 0 < len(steps) < 20_000
    read = model.stream(TEXTS[0], **options)
    assert not streams()  # it begins when it is read
    next(read)
    assert len(streams()) == 1
    read.close()
    assert not streams()
    hook.remove()


def test_what_a_stream_raises_is_raised_where_it_is_read(load, monkeypatch):
    model = load("qwen3")
    with pytest.raises(SettingsError, match="stream makes one itself"):
        model.stream("a", streamer=object())
    with pytest.raises(ValueError, match="num_beams"):
        list(model.stream("a", num_beams=3))

    def broken(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.backbone.model, "generate", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(model.stream("a"))
    assert not streams()


# ── the recipe ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def answers(tmp_path):
    """Parallel texts of words the tiny tokenizer knows, each with a question and its answer."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, items in (("train", 12), ("dev", 4), ("test", 4)):
        lines = []
        for item in range(items):
            for language in ("en", "de"):
                words = [WORDS[(item * 3 + k) % len(WORDS)] for k in range(4)]
                row = {"id": f"{split}-{item}", "text": f"{language} " + " ".join(words)}
                row |= {"question": words[0], "answer": " ".join(words[1:3])}
                lines.append(json.dumps({**row, "language": language, "domain": "hotel"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["qwen3", "mt5"])
@pytest.mark.slow
def test_two_processes_give_the_adapter_of_one(kind, tiny, answers, tmp_path, lora_folder):
    """Also with accumulated pieces, and rows over their language's frozen adapter."""
    found = []
    for processes in (1, 2):
        library = tmp_path / f"library{processes}"
        ah.Library(library).add(lora_folder(kind, "one"), name="de", language="de")
        running = launch(
            "lora_domain.py", "--task", "generation", "--backbone", tiny(kind), "--data", answers,
            "--columns", "target=answer", "--prompt", "{text} : {question}", "--library", library,
            "--steps", 6, "--batch-size", 6, "--rank", 2, "--accumulation", processes, "--cpu",
            "--max-new-tokens", 4, processes=processes, cwd=tmp_path,
        )  # fmt: skip
        output, _ = running.communicate(timeout=400)
        assert running.returncode == 0, output
        assert "language adapters below: de" in output
        assert "bits per byte on 8 test texts (lower is better)" in output
        assert "chrF on 8 test texts (higher is better)" in output
        assert "model.generate([{'text': 'en " in output
        model = ah.load_backbone(str(tiny(kind)), library=library)
        found.append(model.adapter("hotel"))
    assert_same(*found)
    assert found[0].info.prompts == {"prompt": "{text} : {question}"}
    assert {"bits per byte, hotel", "chrF, language + hotel"} <= set(found[0].info.metrics)


def test_a_wrong_row_or_prompt_ends_the_recipe_before_training(
    tiny, answers, tmp_path, monkeypatch
):
    common = ["--task", "generation", "--backbone", tiny("qwen3"), "--data", answers, "--cpu"]
    common += ["--library", "library", "--steps", 2, "--rank", 2]
    for flags, message in (
        ([], r"train.jsonl:1: field 'target' is missing .*text to be written; say .*--columns target=NAME"),
        (["--columns", "target=answer", "--prompt", "{text} {source}"],
         r"train.jsonl:1: field 'source' is missing, and the prompt"),
        (["--columns", "target=answer", "--prompt", "{text"], "prompt='{text'"),
        (["--columns", "target=answer", "--backbone", tiny("bert")], "an encoder, which reads"),
        (["--columns", "target=answer", "--max-length", 5], "a target is never cut"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match=message):
            run("lora_domain.py", *common, *flags, monkeypatch=monkeypatch, cwd=tmp_path)
        assert not list(tmp_path.glob("library/*"))


def test_rows_keep_the_fields_that_a_prompt_needs(tmp_path):
    from adapters_hub.data.reading import read_data

    (tmp_path / "rows.jsonl").write_text('{"text": "a", "question": "b", "answer": "c"}\n')
    (row,) = read_data(tmp_path / "rows.jsonl", {"target": "answer"}, fields=["target"])["train"]
    assert row.fields["target"] == "c"
    assert Generation(prompt="{text} {question}").fields(row)["question"] == "b"
    assert "target" not in Generation().fields(replace(row, fields={"target": "c"}))
