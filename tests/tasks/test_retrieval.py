"""Retrieval: pooling, loss and ranks against plain computations; training; data."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import TEXTS, WORDS
from helpers.recipes import launch, run
from helpers.retrieval import PAIRS, moved, new, pair
from helpers.training import assert_same, settings

import adapters_hub as ah
from adapters_hub.data.pairs import PAIR, pair_rows
from adapters_hub.data.reading import read_data
from adapters_hub.data.rows import Row
from adapters_hub.errors import DataError, SettingsError
from adapters_hub.inference.records import collect_records
from adapters_hub.library.blend import Blend
from adapters_hub.metrics.ranking import ranking_metrics, ranks
from adapters_hub.tasks import make_task
from adapters_hub.tasks.base import Example
from adapters_hub.tasks.retrieval import Retrieval, candidates, info_nce
from adapters_hub.training.loop import train_adapters

BATCHES = [[0, 3, 5, 7], [1, 2, 4, 6], [8, 9, 10, 11], [0, 2, 4, 8], [1, 3, 9, 11], [5, 6, 7, 10]]


@pytest.fixture
def load(tiny, tmp_path):
    return lambda kind: ah.load_backbone(str(tiny(kind)), library=tmp_path / "library")


def fit(model, names, batches=BATCHES, owners=None, rows=PAIRS, accelerator=None, **options):
    task = options.pop("task", None) or Retrieval()
    examples = task.encode(rows, model.backbone)
    values = settings(task="retrieval", **options.pop("values", {}))
    adapters = [new(model, name, task, seed=sum(map(ord, name))) for name in names]
    accelerator = accelerator or Accelerator(cpu=True)
    owners = owners or [0] * len(rows)
    return train_adapters(
        model, task, adapters, examples, owners, batches, values, accelerator, **options
    )


# ── ranks and metrics ────────────────────────────────────────────────────────────────────────────


def test_metrics_by_hand():
    got = ranking_metrics([[1], [2, 4], [11]], recall_at=(1, 10))
    gain = lambda rank: 1 / math.log2(1 + rank)
    assert got["ndcg@10"] == pytest.approx((1 + (gain(2) + gain(4)) / (gain(1) + gain(2)) + 0) / 3)
    assert got["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 11) / 3)
    assert got["accuracy@1"] == got["recall@1"] == pytest.approx(1 / 3)
    assert got["recall@10"] == pytest.approx(2 / 3)


def test_ndcg_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    queries, documents = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=-1)
        for n in (20, 50)
    )
    relevant = [
        set(torch.randperm(50, generator=generator)[: 1 + n % 4].tolist()) for n in range(20)
    ]
    truth = np.array([[float(d in own) for d in range(50)] for own in relevant])
    got = ranking_metrics(ranks(queries, documents, relevant))
    want = metrics.ndcg_score(truth, (queries @ documents.T).numpy(), k=10)
    assert got["ndcg@10"] == pytest.approx(want)
    order = (-(queries @ documents.T)).argsort(1).tolist()
    firsts = [
        next(r for r, d in enumerate(o, 1) if d in own)
        for o, own in zip(order, relevant, strict=True)
    ]
    assert got["mrr"] == pytest.approx(sum(1 / first for first in firsts) / 20)


def test_ties_go_to_the_earlier_document_and_chunks_change_nothing(monkeypatch):
    one = torch.nn.functional.normalize(torch.randn(1, 33), dim=-1)
    same = one.repeat(37, 1)
    assert ranks(one, same, [{0, 5, 36}]) == [[1, 6, 37]]
    assert ranks(one, same, [{5}], [{0, 2}]) == [[4]]
    queries = torch.nn.functional.normalize(torch.randn(9, 33), dim=-1)
    relevant = [{n, n + 3} for n in range(9)]
    whole = ranks(queries, torch.cat([same, queries]), relevant)
    monkeypatch.setattr("adapters_hub.metrics.ranking._SCORES", 60)
    assert ranks(queries, torch.cat([same, queries]), relevant) == whole


def test_vectors_that_are_no_numbers_have_no_rank():
    queries = torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])
    with pytest.raises(DataError, match="NaN or infinity"):
        ranks(queries, torch.eye(2), [[0], [1]])


def test_what_a_query_may_find(load):
    """Two languages of one item: either finds both translations; a copy of itself is not ranked."""
    model, task = load("bert"), Retrieval()
    rows = [
        pair("room", "quiet", key="1"), pair("staff", "clean", key="1"),
        pair("quiet", "room", key="1"), pair("lovely", "view", "rude"), pair("lovely", "slow"),
        pair("view", "view"), pair("rude", "never"),
    ]  # fmt: skip
    records = collect_records(model, task, task.encode(rows, model.backbone), lambda row: Blend())
    texts = ["quiet", "clean", "room", "view", "rude", "slow", "never"]
    vectors = model.embed(texts)
    queries = model.embed([row.text for row in rows])
    relevant = [{0, 1}, {0, 1, 2}, {1, 2}, {3, 5}, {3, 5}, {3}, {6}]
    copies = [{2}, set(), {0}, set(), set(), set(), {4}]
    want = ranking_metrics(ranks(queries, vectors, relevant, copies))
    assert task.metrics(records) == pytest.approx(want)
    with pytest.raises(DataError, match="no rows"):
        task.metrics([])


# ── loss ─────────────────────────────────────────────────────────────────────────────────────────


def test_loss_is_the_plain_formula_with_masks_and_negatives():
    rows = [
        pair("a", "A", "x", key="1"),
        pair("b", "B", key="1"),  # a translation of the first
        pair("c", "C", "A", "y", key="2"),  # its negative is the first's positive
        pair("d", "D"),
        pair("d", "E"),  # the same query
        pair("f", "a"),  # finds what the first asks
    ]
    documents = ["A", "x", "B", "C", "A", "y", "D", "E", "a"]
    owns = [0, 2, 3, 6, 7, 8]
    out = {0: "B A a", 1: "A A", 2: "", 3: "E", 4: "D", 5: ""}  # left out beside the positive
    left_out = [[0, 2, 4, 8], [0, 2, 4], [], [7], [6], []]
    for row, names in out.items():
        extra = [documents[i] for i in left_out[row] if i != owns[row]]
        assert sorted(extra) == sorted(names.split())
    task = Retrieval(temperature=0.1)
    lengths = [3, 2, 4, 2, 2, 2]
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(sum(lengths), 7), dim=-1)
    starts = [sum(lengths[:n]) for n in range(6)]
    rest = [n for n in range(sum(lengths)) if n not in starts]
    examples = [Example([], row, (1,) * size) for row, size in zip(rows, lengths, strict=True)]
    got = task.coupled_loss(vectors, examples, [0] * 6)
    for number in range(6):
        scores = [float(vectors[starts[number]] @ vectors[j]) / 0.1 for j in rest]
        kept = [s for j, s in enumerate(scores) if j == owns[number] or j not in left_out[number]]
        want = math.log(sum(map(math.exp, kept))) - scores[owns[number]]
        assert got[number].item() == pytest.approx(want, abs=1e-5)


def test_rows_of_another_adapter_are_no_candidates():
    examples = [Example([], row, (1, 1)) for row in PAIRS[:4]]
    allowed = candidates(examples, [0, 1, 0, 1])
    assert allowed.tolist() == [[(a + b) % 2 == 0 for b in range(4)] for a in range(4)]


def test_a_lone_row_has_nothing_to_lose():
    vectors = torch.nn.functional.normalize(torch.randn(2, 5), dim=-1)
    assert info_nce(vectors, torch.tensor([1]), torch.ones(1, 1).bool(), 0.1).tolist() == [0.0]


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_the_loss_of_a_batch_is_that_of_its_outputs(load, kind):
    model, task = load(kind), Retrieval(query_prompt="the ", document_prompt="staff ")
    examples = task.encode(PAIRS[:5], model.backbone)
    batch = task.collate(examples, model.backbone)
    with torch.no_grad():
        outputs = task.outputs(model, batch, [])
        got, want = task.loss(model, batch, []), task.coupled_loss(outputs, examples, [0] * 5)
    torch.testing.assert_close(got, want)
    queries = model.embed([row.text for row in PAIRS[:5]], prompt="the ")
    documents = model.embed([row.fields["positive"] for row in PAIRS[:5]], prompt="staff ")
    torch.testing.assert_close(outputs[0::2], queries, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs[1::2], documents, atol=1e-5, rtol=1e-4)


# ── training ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "qwen3", "mt5"])
def test_training_lowers_the_loss_and_raises_recall(load, kind):
    model, task = load(kind), Retrieval(pooling="mean")
    rows = [pair(f"{WORDS[n]} {WORDS[n + 1]}", f"{WORDS[n]} {WORDS[n + 3]} {n}") for n in range(8)]
    dev = task.encode(rows, model.backbone)
    (adapter,), progress = fit(
        model, ["a"], [list(range(8))] * 30, rows=rows, task=task, dev=dev, dev_owners=[0] * 8,
        values={"learning_rate": 0.01, "eval_every": 10},
    )  # fmt: skip
    losses = [look["loss"] for look in progress.history]
    assert losses[-1] < losses[0]
    bare, trained = (
        task.metrics(collect_records(model, task, dev, lambda row, blend=blend: blend))
        for blend in (Blend(), model.resolve("a"))
    )
    assert bare["recall@1"] < trained["recall@1"] == 1.0
    assert all(b.abs().max() > 0 for _, b in adapter.factors.values())
    if kind == "mt5":
        assert all(site.startswith("encoder.") for site in adapter.factors)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [2, 3])
def test_accumulation_changes_nothing(load, pieces):
    model = load("qwen3")
    rows = [*PAIRS[:10], pair("room", "staff", "view", "slow"), pair("view", "rude", "never")]
    batches = [*BATCHES, [3, 3, 10, 11]]  # a row may be drawn twice
    (whole,), _ = fit(model, ["a"], batches, rows=rows)
    (cut,), _ = fit(model, ["a"], batches, rows=rows, values={"accumulation": pieces})
    assert_same(whole, cut)


def test_dropout_has_the_same_masks_in_both_forwards(load):
    """With pieces there are two forwards; other masks in the second would be another gradient."""
    model = load("bert")
    values = {"dropout": 0.3, "accumulation": 2}
    seen = []

    class Watched(Retrieval):
        def outputs(self, model, batch, heads):
            seen.append(super().outputs(model, batch, heads))
            return seen[-1]

    fit(model, ["a"], BATCHES[:3], task=Watched(), values={**values, "learning_rate": 0.05})
    assert len(seen) == 3 * 4
    for step in range(3):
        first, second = seen[4 * step : 4 * step + 2], seen[4 * step + 2 : 4 * step + 4]
        for one, two in zip(first, second, strict=True):
            assert not one.requires_grad
            assert two.requires_grad
            torch.testing.assert_close(one, two.detach())


def test_adapters_trained_together_equal_those_trained_alone(load):
    model = load("qwen3")
    owners = [n % 2 for n in range(12)]
    uneven = [*BATCHES, [0, 2, 4], [1], [6, 8, 10]]
    together, _ = fit(model, ["first", "second"], uneven, owners)
    for number, name in enumerate(("first", "second")):
        mine = [[i for i in batch if owners[i] == number] for batch in uneven]
        (alone,), _ = fit(model, [name], mine)
        assert_same(together[number], alone)
    assert_differ(*together)


def assert_differ(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert any((x - y).abs().max() > 1e-3 for x, y in pairs)


def test_query_and_positive_are_each_over_their_own_language(load, lora_folder):
    """A pair of two languages: what is trained sees each text over that text's adapter."""
    model = load("qwen3")
    model.library.add(lora_folder("qwen3", "one"), name="de", language="de")
    row = pair("the room", "quiet view", "rude", language="en", positive_language="de")
    task = Retrieval()
    (example,) = task.encode([row], model.backbone)
    assert [own.language for own in task.rows(example.row)] == ["en", "de", "de"]
    german = model.resolve("de")
    over = lambda row: german if row.language == "de" else Blend()
    (record,) = collect_records(model, task, [example], over)
    want = model.embed(["the room", "quiet view", "rude"], [None, "de", "de"]).numpy()
    assert record["vectors"].dtype == want.dtype == np.float32
    np.testing.assert_allclose(record["vectors"], want, atol=1e-5, rtol=1e-4)
    rows = [replace(r, fields={**r.fields, "positive_language": "de"}) for r in PAIRS]
    (plain,), _ = fit(model, ["a"], rows=rows)
    (mixed,), _ = fit(model, ["a"], rows=rows, over=over)
    assert_differ(plain, mixed)


def test_fit_finds_weights_for_retrieval(load):
    model = load("bert")
    model.add(moved(new(model, "one", Retrieval(pooling="cls"))))
    model.add(moved(new(model, "two", Retrieval(pooling="cls")), scale=0.3))
    result = ah.fit(model, "one + two", PAIRS, task="retrieval", steps=15, progress=False)
    assert result.after["rows"]["loss"] < result.before["rows"]["loss"]
    assert "ndcg@10" in result.after["rows"]


# ── data ─────────────────────────────────────────────────────────────────────────────────────────


def test_pairs_from_files(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        '{"q": "a", "doc": "b", "negatives": ["c", ""], "positive_language": "German"}\n'
        '{"q": "d", "doc": "e", "negatives": "f", "other": 1}\n'
        '{"q": "g", "doc": "h"}\n'
    )
    columns = {"text": "q", "positive": "doc"}
    rows = pair_rows(read_data(tmp_path / "pairs.jsonl", columns, fields=PAIR)["train"], columns)
    assert [row.fields for row in rows] == [
        {"positive": "b", "negatives": ["c"], "positive_language": "de"},
        {"other": 1, "positive": "e", "negatives": ["f"]},
        {"positive": "h"},
    ]
    assert Retrieval().rows(rows[0])[1].language == "de"
    (tmp_path / "pairs.csv").write_text("text,positive,negatives\na,b,c\n")
    (row,) = pair_rows(read_data(tmp_path / "pairs.csv")["train"])
    assert row.fields == {"positive": "b", "negatives": ["c"]}


def test_translations_of_an_item_are_pairs():
    rows = [
        Row(f"{tag} {item}", language=tag, key=f"-/{item}")
        for item in range(40)
        for tag in ("en", "de", "fr")
    ]
    lone = Row("alone", language="en", key="-/x")
    own = pair("mine", "my positive", key="-/0", language="en")
    paired = pair_rows([*rows, lone, own])
    seen = set()
    for row in paired[:-2]:
        tag, item = row.fields["positive"].split()
        assert tag == row.fields["positive_language"] != row.language
        assert row.key == f"-/{item}"
        seen.add((row.language, tag))
    assert len(seen) == 6  # every pair of languages
    assert "positive" not in paired[-2].fields
    assert paired[-1].fields["positive"] == "my positive"
    assert pair_rows([*rows, lone, own]) == paired


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"text": "a", "answer": 3}', r"pairs.jsonl:1: field 'answer' has 3"),
        ('{"text": "a", "answer": " "}', r"pairs.jsonl:1: field 'answer' has ' '"),
        ('{"text": "a", "answer": "b", "negatives": [1]}', r"pairs.jsonl:1: field 'negatives'"),
        ('{"text": "a", "answer": "b", "negatives": {}}', r"pairs.jsonl:1: field 'negatives'"),
        (
            '{"text": "a", "answer": "b", "positive_language": "zz9"}',
            r"pairs.jsonl:1: field 'positive_language'",
        ),
        ('{"text": "a"}', r"pairs.jsonl: field 'answer' is missing.*--columns positive=NAME"),
        ('{"text": "a", "answer": "b", "negatives": ["a"]}', r"jsonl:1: field .* has the text its"),
        ('{"text": "a", "answer": "b", "negatives": ["b"]}', r"pairs.jsonl:1: field 'negatives' h"),
    ],
)
def test_bad_pairs_name_file_line_and_field(load, tmp_path, record, message):
    (tmp_path / "pairs.jsonl").write_text(record + "\n")
    columns = {"positive": "answer"}
    encode = lambda rows: Retrieval().encode(pair_rows(rows, columns), load("bert").backbone)
    with pytest.raises(DataError, match=message):
        encode(read_data(tmp_path / "pairs.jsonl", columns, fields=PAIR)["train"])


def test_pairs_given_in_python_are_checked_too(load):
    backbone = load("bert").backbone
    with pytest.raises(DataError, match="not a list of texts"):
        Retrieval().encode([Row("a", fields={"positive": "b", "negatives": "c"})], backbone)
    with pytest.raises(DataError, match="3 in its pair is not text"):
        Retrieval().encode([Row("a", fields={"positive": 3})], backbone)
    assert Retrieval().encode([], backbone) == []


def test_wrong_settings(load):
    with pytest.raises(SettingsError, match="pooling='max': choose one of mean, cls, last"):
        make_task("retrieval", pooling="max")
    with pytest.raises(SettingsError, match="temperature=0"):
        make_task("retrieval", temperature=0.0)
    model = load("bert")
    with pytest.raises(SettingsError, match="batch_size=0"):
        model.embed(TEXTS, batch_size=0)
    with pytest.raises(SettingsError, match="not both"):
        model.embed(TEXTS, prompt="a", prompt_name="query")
    with pytest.raises(SettingsError, match="pooling='max'"):
        model.embed(TEXTS, pooling="max")


def test_a_column_called_positive_is_any_column_for_other_tasks(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "positive": 1, "negatives": 0.5}\n')
    (row,) = read_data(tmp_path / "texts.jsonl")["train"]
    assert row.fields == {"positive": 1, "negatives": 0.5}


# ── the recipe ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def questions(tmp_path):
    """Parallel texts of words the tiny tokenizer knows, each with a question that finds it."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, items in (("train", 12), ("dev", 4), ("test", 4)):
        lines = []
        for item in range(items):
            for language in ("en", "de"):
                words = [WORDS[(item * 3 + k) % len(WORDS)] for k in range(3)]
                row = {"id": f"{split}-{item}", "text": f"{language} {item} " + " ".join(words)}
                row |= {"question": " ".join(words[:2]), "language": language, "domain": "hotel"}
                lines.append(json.dumps(row))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_two_processes_give_the_adapter_of_one(tiny, questions, tmp_path, lora_folder):
    """Also with accumulated pieces, and rows over their language's frozen adapter."""
    found = []
    for processes in (1, 2):
        library = tmp_path / f"library{processes}"
        ah.Library(library).add(lora_folder("bert", "one"), name="de", language="de")
        running = launch(
            "lora_domain.py", "--task", "retrieval", "--backbone", tiny("bert"), "--data",
            questions, "--columns", "text=question", "positive=text", "--library", library,
            "--steps", 6, "--batch-size", 6, "--rank", 2, "--accumulation", processes, "--cpu",
            processes=processes, cwd=tmp_path,
        )  # fmt: skip
        output, _ = running.communicate(timeout=300)
        assert running.returncode == 0, output
        assert f"processes: {processes} on cpu" in output
        assert "language adapters below: de" in output
        assert "nDCG@10 on 8 test texts" in output
        model = ah.load_backbone(str(tiny("bert")), library=library)
        found.append(model.adapter("hotel"))
    assert_same(*found)


def test_the_recipe_pairs_translations(tiny, questions, tmp_path, monkeypatch, capsys):
    """Without a positive, a text finds its translation; what is saved says how it embeds."""
    common = ["--task", "retrieval", "--backbone", tiny("bert"), "--data", questions, "--cpu"]
    common += ["--library", "library", "--steps", 3, "--rank", 2, "--batch-size", 4]
    run(
        "lora_domain.py", *common, "--query-prompt", "the ", "--pooling", "cls",
        monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "| language | bare backbone" in out
    assert "model.encoder().encode_query(" in out
    info = ah.Library(tmp_path / "library").get("hotel")
    assert (info.task, info.pooling, info.prompts) == ("retrieval", "cls", {"query": "the "})
    assert set(info.metrics) == {"nDCG@10, bare backbone (head only)", "nDCG@10, hotel"}
    common[common.index("--batch-size") + 1] = 1
    with pytest.raises(SystemExit, match="batch_size=1"):
        run("lora_domain.py", *common, "--replace", monkeypatch=monkeypatch, cwd=tmp_path)
    lone = ["--language", "en", "--name", "lone", "--batch-size", 4]
    with pytest.raises(
        SystemExit, match=r"train.jsonl:1: field 'positive' is missing .*, and no oth"
    ):
        run("lora_domain.py", *common, *lone, monkeypatch=monkeypatch, cwd=tmp_path)
