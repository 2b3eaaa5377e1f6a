"""Matching: the loss against a plain computation, pairs by a pivot, and the choice of objectives."""

import json

import pytest
import torch
import transformers
from conftest import WORDS, learn_task
from helpers.recipes import run
from helpers.retrieval import PAIRS, moved, new, pair

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.inference.records import collect_records
from adapters_hub.tasks.matching import Matching
from adapters_hub.text.words import split_words
from adapters_hub.training.objectives import with_objective
from adapters_hub.training.settings import parse_settings


@pytest.fixture
def load(tiny, tmp_path):
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")


def losses(model, task, rows, blend):
    examples = task.encode(rows, model.backbone)
    batch = task.collate(examples, model.backbone)
    with model.bank.using(model.plan([model.resolve(blend)] * len(rows))):
        return task.loss(model, batch, [])


@pytest.mark.parametrize(("kind", "depths"), [("bert", 1), ("bert", 2), ("qwen3", 2), ("mt5", 1)])
def test_the_loss_is_that_of_a_plain_computation(kind, depths, load):
    model, task = load(kind), Matching(depths=depths)
    model.add(moved(new(model, "de", task)))
    backbone = model.backbone
    body = backbone.base.get_encoder() if kind == "mt5" else backbone.base
    got = losses(model, task, PAIRS[:4], "de")
    for row, loss in zip(PAIRS[:4], got, strict=True):
        sides = []
        for text, blend in ((row.text, "de"), (row.fields["positive"], None)):
            ids = backbone.tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.no_grad(), model.adapted(1, blend):
                layers = body(ids, output_hidden_states=True).hidden_states
            chosen = layers[-1:] if depths == 1 else (layers[(len(layers) - 1) // 2], layers[-1])
            read = [states[0, -1 if kind == "qwen3" else 0] for states in chosen]
            sides.append([*(states[0].mean(0) for states in chosen), *read])
        parts = [
            (ours - theirs).square().sum() / theirs.square().sum()
            for ours, theirs in zip(*sides, strict=True)
        ]
        assert loss.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "qwen3"])
def test_words_are_matched_to_the_words_that_they_mean(kind, load):
    model = load(kind)
    task = Matching.from_rows(Matching(words=0.5), {"train": PAIRS}, {})
    plain = Matching(words=0.0)
    model.add(moved(new(model, "de", plain)))
    backbone, tokenizer = model.backbone, model.backbone.tokenizer
    got = losses(model, task, PAIRS[:4], "de") - losses(model, plain, PAIRS[:4], "de")
    assert got.min() > 0
    for row, loss in zip(PAIRS[:4], got, strict=True):
        sides = []
        for text, blend in ((row.text, "de"), (row.fields["positive"], None)):
            encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
            with torch.no_grad(), model.adapted(1, blend):
                states = backbone.base(encoded["input_ids"]).last_hidden_state[0]
            words, tokens, at = split_words(text), [], 0
            for word in words:
                start = text.index(word, at)
                at = start + len(word)
                offsets = encoded["offset_mapping"][0].tolist()
                begins = [
                    next((c for c in range(a, b) if not text[c].isspace()), -1) for a, b in offsets
                ]
                tokens.append([n for n, place in enumerate(begins) if start <= place < at])
            sides.append((words, tokens, states))
        (words, ours, states), (others, theirs, targets) = sides
        weights = task.aligner.weights(words, others)
        total = sure = 0.0
        for w, tokens in enumerate(ours):
            means = [targets[theirs[o]].mean(0) * weights[w, o] for o in range(len(others))]
            target = sum(means) / max(weights[w].sum(), 1e-9)
            for token in tokens:
                share = weights[w].sum() / len(tokens)
                apart = (states[token] - target).square().sum() / target.square().sum()
                total, sure = total + share * apart, sure + share
        assert loss.item() == pytest.approx(0.5 * float(total / sure), rel=1e-3)


@pytest.mark.parametrize("max_length", [256, 5])  # the latter cuts words off
def test_what_is_kept_by_words_is_what_tokens_are_matched_by(max_length, load, monkeypatch):
    """Against the weights of all pairs of tokens, computed at once; each text is tokenised once."""
    model = load("bert")
    rows = [*PAIRS[:3], pair("The qzx room was clean", "lovely view, never rude and slow")]
    task = Matching.from_rows(Matching(max_length=max_length), {"train": PAIRS + rows}, {})
    model.add(moved(new(model, "de", task)))
    tokenizer = model.backbone.tokenizer
    dense = []
    for row in rows:
        sides = []
        for text in (row.text, row.fields["positive"]):
            encoded = tokenizer(
                text, return_offsets_mapping=True, truncation=True, max_length=max_length
            )
            words, at, starts = split_words(text), 0, []
            for word in words:
                starts.append(text.index(word, at))
                at = starts[-1] + len(word)
            member = torch.zeros(len(encoded["input_ids"]), len(words))
            for token, (start, end) in enumerate(encoded["offset_mapping"]):
                if start < end:
                    member[token, max(n for n, s in enumerate(starts) if s <= start)] = 1
            sides.append((words, member / member.sum(0).clamp_min(1)))
        (words, ours), (others, theirs) = sides
        weights = torch.tensor(task.aligner.weights(words, others), dtype=torch.float32)
        dense.append(ours @ weights @ theirs.T)
    given, tokenise = [], type(tokenizer).__call__

    def recorded(self, texts, *more, **options):
        given.extend(texts)
        return tokenise(self, texts, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "__call__", recorded)
        examples = task.encode(rows, model.backbone)
    assert sorted(given) == sorted(t for row in rows for t in (row.text, row.fields["positive"]))
    for example in examples:
        assert example.target.links.weights.size < len(example.input_ids) * len(example.target.ids)
    batch = task.collate(examples, model.backbone)
    aligned = torch.zeros_like(batch["aligned"])
    for number, weights in enumerate(dense):
        aligned[number, : weights.shape[0], : weights.shape[1]] = weights
    torch.testing.assert_close(batch["aligned"], aligned)
    assert aligned.count_nonzero() > 0
    with torch.no_grad(), model.bank.using(model.plan([model.resolve("de")] * len(rows))):
        got, want = (
            task.loss(model, {**batch, "aligned": a}, []) for a in (batch["aligned"], aligned)
        )
    torch.testing.assert_close(got, want)


def test_without_an_alignment_only_texts_are_matched(load, monkeypatch, caplog):
    model, plain = load("bert"), Matching(words=0.0)
    model.add(moved(new(model, "de", plain)))
    task = Matching.from_rows(Matching(), {"train": PAIRS}, {})
    unknown = [pair("zzz", "qqq")]
    torch.testing.assert_close(
        losses(model, task, unknown, "de"), losses(model, plain, unknown, "de")
    )
    monkeypatch.setattr(type(model.backbone.tokenizer), "is_fast", False)
    torch.testing.assert_close(
        losses(model, task, PAIRS[:3], "de"), losses(model, plain, PAIRS[:3], "de")
    )
    assert "only whole texts are matched, not words" in caplog.text


def test_a_copy_is_matched_from_the_start(load):
    model, task = load("bert"), Matching()
    model.add(new(model, "de", task))  # a fresh LoRA adds nothing
    copies = [pair(text, text) for text in WORDS[:3]]
    assert losses(model, task, copies, "de").abs().max() < 1e-9
    assert losses(model, task, PAIRS[:3], "de").min() > 1e-3


@pytest.mark.slow
def test_training_brings_the_states_to_the_translations(load):
    model, task = load("bert"), Matching(strength=1.0)
    with torch.no_grad():
        bare = losses(model, task, PAIRS, None).mean()
    examples, _ = learn_task(model, task, PAIRS, steps=30, name="de")
    blend = model.resolve("de")
    records = collect_records(model, task, examples, lambda row: blend)
    assert task.metrics(records)["mismatch"] < 0.5 * bare
    assert task.score(task.tallies(records).sum(0)) == pytest.approx(
        task.metrics(records)["mismatch"]
    )
    texts, positives = [row.text for row in PAIRS], [row.fields["positive"] for row in PAIRS]
    target = model.embed(positives, adapters=None, pooling="mean")
    near, far = (model.embed(texts, adapters=a, pooling="mean") for a in ("de", None))
    assert (near * target).sum() > (far * target).sum()


def test_half_of_what_was_learnt_is_kept(tiny, tmp_path, monkeypatch, fresh_accelerate):
    monkeypatch.chdir(tmp_path)
    kept = {}
    for strength in (1.0, 0.5):
        model = ah.load_backbone(str(tiny("bert")), library=tmp_path / f"library{strength}")
        info = ah.train(
            model, PAIRS, task="matching", name="en", language="en", steps=3, batch_size=8,
            strength=strength, rank=2, over=("none",), cpu=True,
        )  # fmt: skip
        assert info.task == "matching"
        ids = torch.tensor([[3, 4, 5]])
        with torch.no_grad():
            resident = model(input_ids=ids, adapters="en").logits
            model.drop("en")
            torch.testing.assert_close(model(input_ids=ids, adapters="en").logits, resident)
        pieces = model.pieces(model.resolve("en"))
        kept[strength] = {site: s * (b @ a) for site, [(s, a, b)] in pieces.items()}
    for site, whole in kept[1.0].items():
        assert whole.norm() > 0
        torch.testing.assert_close(kept[0.5][site], 0.5 * whole)
    for wrong in (0.0, 1.5, -1.0):
        with pytest.raises(SettingsError, match="must be above 0 and at most 1"):
            Matching(strength=wrong)


def test_texts_are_matched_to_those_of_the_pivot():
    rows = [
        Row("hus", key="1", language="da"),
        Row("house", key="1", language="en"),
        Row("ile", key="1", language="yo"),
        Row("omi", key="2", language="yo"),
        Row("bil", key="3", language="da", fields={"positive": "car"}),
    ]
    task = Matching()
    prepared = task.prepare(rows, {}, task)
    assert [(row.text, row.fields.get("positive")) for row in prepared] == [
        ("hus", "house"), ("ile", "house"), ("omi", None), ("bil", "car"),
    ]  # fmt: skip
    danish = Matching(pivot="Danish")
    assert [row.text for row in danish.prepare(rows, {}, danish)] == ["house", "ile", "omi", "bil"]


def test_a_row_without_a_translation_says_what_is_missing(load):
    row = Row("omi", language="yo", where="yo.jsonl:3")
    with pytest.raises(DataError, match=r"yo\.jsonl:3: .*positive.*pivot"):
        Matching().encode([row], load("bert").backbone)


# ── which objective ──────────────────────────────────────────────────────────────────────────────

TEXTS = {"train": [Row("hus", language="da", key="1"), Row("bil", language="da", key="2")]}
TRANSLATIONS = {"train": [*TEXTS["train"], Row("house", language="en", key="1")]}
EXPLICIT = {"train": [Row("hus", language="da", fields={"positive": "house"})]}


@pytest.fixture
def bare_encoder(tmp_path, tiny):
    """A checkpoint without a language-model head."""
    config = transformers.AutoConfig.from_pretrained(tiny("bert"))
    transformers.BertModel(config).save_pretrained(tmp_path / "sentences")
    transformers.AutoTokenizer.from_pretrained(tiny("bert")).save_pretrained(tmp_path / "sentences")
    return str(tmp_path / "sentences")


def choose(backbone, splits, *flags):
    recipe = {"task": "language-modeling"}
    resolved = parse_settings(["--backbone", str(backbone), *flags], recipe)
    chosen = with_objective(resolved, splits)
    return chosen.settings.objective, chosen.settings.task, chosen.origins["objective"]


@pytest.mark.parametrize(
    ("kind", "splits", "flags", "objective", "task"),
    [
        ("bert", TEXTS, (), "masked", "language-modeling"),
        ("qwen3", TEXTS, (), "causal", "language-modeling"),
        ("qwen3", TRANSLATIONS, (), "causal", "language-modeling"),
        ("bert", TRANSLATIONS, (), "masked", "language-modeling"),  # ids may be lines of a file
        ("bert", EXPLICIT, (), "match", "matching"),
        ("bert", EXPLICIT, ("--objective", "masked"), "masked", "language-modeling"),
        ("bert", EXPLICIT, ("--objective", "contrastive"), "contrastive", "retrieval"),
        ("bert", EXPLICIT, ("--task", "retrieval"), "contrastive", "retrieval"),
        ("bert", EXPLICIT, ("--task", "language-modeling"), "masked", "language-modeling"),
        ("qwen3", TEXTS, ("--task", "language-modeling"), "causal", "language-modeling"),
    ],
)
def test_the_objective_is_what_data_and_backbone_allow(kind, splits, flags, objective, task, tiny):
    assert choose(tiny(kind), splits, *flags)[:2] == (objective, task)


def test_why_an_objective_was_chosen_is_said(tiny, bare_encoder):
    assert "positive" in choose(tiny("bert"), EXPLICIT)[2]
    assert choose(bare_encoder, EXPLICIT)[0] == "match"
    assert "share ids" in choose(bare_encoder, TRANSLATIONS)[2]
    assert choose(tiny("bert"), TEXTS, "--objective", "masked")[2] == "command line"


def test_an_objective_brings_its_number_of_steps(tiny):
    def steps(*flags):
        recipe = {"task": "language-modeling", "steps": 300}
        resolved = parse_settings(["--backbone", str(tiny("bert")), *flags], recipe)
        chosen = with_objective(resolved, EXPLICIT)
        return chosen.settings.steps, chosen.origins["steps"]

    assert steps() == (150, "objective match")
    assert steps("--steps", "300") == (300, "command line")
    assert steps("--objective", "masked") == (300, "recipe")


def test_objectives_that_do_not_go_together(tiny, bare_encoder):
    with pytest.raises(SettingsError, match="no objective fits"):
        choose(bare_encoder, TEXTS)
    with pytest.raises(SettingsError, match="whose objective is 'masked'"):
        choose(tiny("bert"), TEXTS, "--objective", "causal")
    with pytest.raises(SettingsError, match="leave out one of them"):
        choose(tiny("bert"), TEXTS, "--objective", "match", "--task", "retrieval")
    with pytest.raises(SettingsError, match="a language adapter is trained by one of"):
        choose(tiny("bert"), TEXTS, "--task", "classification")


def test_the_language_recipe_matches_pairs(bare_encoder, tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for tag, words in (("en", WORDS), ("da", WORDS[::-1])):
        lines = "".join(f"{a} {b}\n" for a in words for b in words[:6])
        (data / f"{tag}.txt").write_text(lines)
    run(
        "lora_language.py", "--backbone", bare_encoder, "--data", data, "--library", "library",
        "--language", "da", "--steps", 3, "--batch-size", 8, "--rank", 2, "--cpu",
        monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "taken for translations of each other" in out
    assert "mismatch" in out
    info = ah.Library(tmp_path / "library").get("da")
    assert (info.language, info.task, info.pooling) == ("da", "matching", None)
    config = json.loads((tmp_path / "library" / "da" / "adapter_config.json").read_text())
    assert config["task_type"] == "FEATURE_EXTRACTION"
    assert "made to be added" in (tmp_path / "library" / "da" / "README.md").read_text()
