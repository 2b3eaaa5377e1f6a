"""Translation: languages as tokens and by name, pairs, sacrebleu's scores, and the recipe."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import WORDS, in_double, learn_task, tiny_config
from helpers.generation import add_moved, unspoken
from helpers.recipes import launch, run
from helpers.training import assert_same

import adapters_hub as ah
from adapters_hub.data.pairs import translations
from adapters_hub.data.reading import read_data
from adapters_hub.data.rows import Row
from adapters_hub.errors import BackboneError, DataError, LanguageError, SettingsError
from adapters_hub.evaluation.scores import scores_by_language
from adapters_hub.inference.records import collect_records
from adapters_hub.metrics.text_scores import bleu, chrf_plus_plus, signature, wrong_language
from adapters_hub.tasks import make_task
from adapters_hub.tasks.declarations.translation import TranslationOptions
from adapters_hub.tasks.translation import Translation
from adapters_hub.text.language_codes import code_for, codes_of, decoder_start, special_tokens

pytest.importorskip("sacrebleu")
pytest.importorskip("py3langid")
CODES = ["eng_Latn", "deu_Latn", "zho_Hans", "ukr_Cyrl"]


def pair(text, target, source="en", language="de", where="p:1"):
    return Row(
        text, language=source, where=where,
        fields={"target": target, "target_language": language},
    )  # fmt: skip


ROWS = [
    pair("the room was clean", "staff rude"),
    pair("never again", "很好", language="zh"),
    pair("lovely view", "quiet and slow room", source="de", language="en"),
    pair("slow", "near the station", language="uk"),
]


@pytest.fixture(scope="session")
def nllb(tmp_path_factory):
    """A tiny M2M100 with NLLB's own tokenizer, of letters and a few languages."""
    from transformers import AutoModelForSeq2SeqLM, NllbTokenizer

    path = tmp_path_factory.mktemp("backbones") / "nllb"
    letters = "abcdefghijklmnopqrstuvwxyz.,:很好房间"
    vocabulary = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", "▁", *letters])
    vocabulary = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=CODES)
    config = tiny_config("m2m100")
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    config.update(ids)
    assert len(tokenizer) <= config.vocab_size
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    model.generation_config.update(**ids)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def load(tiny, nllb, tmp_path):
    def loaded(kind):
        folder = nllb if kind == "nllb" else tiny(kind)
        return ah.load_backbone(str(folder), library=tmp_path / "library")

    return loaded


def losses(model, rows, adapters=None, task=None):
    task = task or Translation()
    batch = task.collate(task.encode(rows, model.backbone), model.backbone)
    with torch.no_grad(), model.adapted(len(rows), adapters):
        return task.loss(model, batch, [])


# ── language tokens ──────────────────────────────────────────────────────────────────────────────


def as_backbone(tokenizer, model_type):
    config = SimpleNamespace(model_type=model_type)
    return SimpleNamespace(tokenizer=tokenizer, kind="encoder-decoder", config=config, name="tiny")


def tokenizers(folder):
    """Every tokenizer with language tokens that can be made offline, and its model's type."""
    import sentencepiece
    import transformers as t

    text = folder / "text.txt"
    text.write_text("\n".join(WORDS * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spm"), vocab_size=45,
        hard_vocab_limit=False, minloglevel=9,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    names = [pieces.id_to_piece(n) for n in range(3, pieces.get_piece_size())]
    vocabulary = {token: n for n, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *names])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    m2m100 = t.M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"))
    scores = [(token, -1.0 * n) for n, token in enumerate(vocabulary)]
    return [
        (m2m100, "m2m_100", "de", False),
        (t.NllbTokenizer(), "m2m_100", "deu_Latn", False),
        (t.NllbTokenizer(legacy_behaviour=True), "m2m_100", "deu_Latn", False),
        (t.MBartTokenizer(), "mbart", "de_DE", True),
        (t.MBart50Tokenizer(vocab=scores), "mbart", "de_DE", False),
    ]


def test_language_tokens_are_those_of_the_tokenizer_itself(tmp_path):
    for tokenizer, model_type, code, alone in tokenizers(tmp_path):
        backbone = as_backbone(tokenizer, model_type)
        assert code_for("de", backbone) == code
        tokenizer.src_lang = code
        token = codes_of(backbone)[code]
        whole = tokenizer("room")["input_ids"]
        bare = tokenizer("room", add_special_tokens=False)["input_ids"]
        assert token in whole
        tokenizer.src_lang = code_for("fr", backbone)  # whatever it was left at
        before, after = special_tokens("de", backbone)
        assert [*before, *bare, *after] == whole
        assert decoder_start("de", backbone, 2) == ([token] if alone else [2, token])


def test_a_language_is_found_by_its_distance_and_a_missing_one_names_the_closest(load):
    from transformers import MBartTokenizer, NllbTokenizer

    nllb = as_backbone(NllbTokenizer(), "m2m_100")
    for tag, code in [("zh", "zho_Hans"), ("zh-Hant", "zho_Hant"), ("nb", "nob_Latn"),
                      ("no", "nob_Latn"), ("ar", "arb_Arab"), ("sw", "swh_Latn"),
                      ("pt-BR", "por_Latn"), ("de-AT", "deu_Latn")]:  # fmt: skip
        assert code_for(tag, nllb) == code
    mbart = as_backbone(MBartTokenizer(), "mbart")
    assert [code_for(tag, mbart) for tag in ("en", "zh")] == ["en_XX", "zh_CN"]
    with pytest.raises(
        BackboneError, match=r"no code for sv \(Swedish\); the closest of its 4 are"
    ):
        code_for("sv", load("nllb").backbone)
    model = load("nllb")
    with pytest.raises(BackboneError, match=r"no code for fo \(Faroese\).*deu_Latn"):
        model.translate("a", source="en", target="fo")
    with pytest.raises(LanguageError, match="not a language"):
        model.translate("a", source="en", target="qqq9")


def test_rows_of_several_languages_go_through_one_batch(load, nllb):
    """What is written equals transformers' own translation of each row alone."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = load("nllb")
    texts = [row.text for row in ROWS]
    sources = [row.language for row in ROWS]
    targets = [row.fields["target_language"] for row in ROWS]
    tokens = set(codes_of(model.backbone).values())  # which are forced
    silent = {"suppress_tokens": sorted({*unspoken(model)} - tokens)}
    options = {"max_new_tokens": 8, **silent}
    got = model.translate(texts, sources, targets, **options)
    plain = AutoModelForSeq2SeqLM.from_pretrained(nllb).eval()
    codes = {"en": "eng_Latn", "de": "deu_Latn", "zh": "zho_Hans", "uk": "ukr_Cyrl"}
    tokenizer = AutoTokenizer.from_pretrained(nllb)
    for text, source, target, own in zip(texts, sources, targets, got, strict=True):
        tokenizer.src_lang = codes[source]
        inputs = tokenizer(text, return_tensors="pt")
        start = tokenizer.convert_tokens_to_ids(codes[target])
        with torch.no_grad():
            out = plain.generate(**inputs, forced_bos_token_id=start, max_new_tokens=9, **silent)
        assert own == tokenizer.decode(out[0], skip_special_tokens=True).strip()
        assert model.translate(text, source, target, **options) == [own]
    assert model.translate(texts, sources, targets, batch_size=2, **options) == got
    assert len(set(model.translate(["slow"] * 3, "en", ["de", "zh", "uk"], **options))) > 1


def test_the_loss_is_transformers_own_behind_the_language_token(load, nllb):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = load("nllb")
    got = losses(model, ROWS)
    plain = AutoModelForSeq2SeqLM.from_pretrained(nllb).eval()
    codes = {"en": "eng_Latn", "de": "deu_Latn", "zh": "zho_Hans", "uk": "ukr_Cyrl"}
    tokenizer = AutoTokenizer.from_pretrained(nllb)
    for row, nats in zip(ROWS, got, strict=True):
        tokenizer.src_lang = codes[row.language]
        inputs = tokenizer(row.text, return_tensors="pt")
        tokenizer.src_lang = codes[row.fields["target_language"]]
        labels = tokenizer(row.fields["target"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = plain(**inputs, labels=labels).logits[0]
        scores = logits.log_softmax(-1).gather(1, labels[0][:, None])[1:]  # the token is given
        torch.testing.assert_close(nats, -scores.sum(), atol=1e-4, rtol=1e-5)


# ── any backbone ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["nllb", "mt5", "qwen3"])
def test_a_row_of_a_mixed_batch_is_that_row_alone(kind, load):
    model = in_double(load(kind))
    for name in ("one", "two"):
        model.add(add_moved(model, name, Translation()).map(lambda t: t.double()))
    blends = ["one", None, "two - one", "one"]
    mixed = losses(model, ROWS, blends)
    for row, blend, got in zip(ROWS, blends, mixed, strict=True):
        torch.testing.assert_close(got, losses(model, [row], blend)[0], atol=1e-6, rtol=1e-6)
    options = {"max_new_tokens": 6}
    texts, sources = [row.text for row in ROWS], [row.language for row in ROWS]
    targets = [row.fields["target_language"] for row in ROWS]
    whole = model.translate(texts, sources, targets, blends, **options)
    for n, own in enumerate(whole):
        one = model.translate(texts[n], sources[n], targets[n], blends[n], **options)
        assert one == [own]


def test_languages_are_named_in_a_prompt(load):
    for kind, want in [
        ("qwen3", "english: never again chinese:"),
        ("mt5", "translate english to chinese: never again"),
    ]:
        model = load(kind)
        tokenizer = model.backbone.tokenizer
        (example,) = Translation().encode([ROWS[1]], model.backbone)
        given = example.target.ids[: example.target.given]
        ids = given if kind == "qwen3" else example.input_ids
        assert list(ids) == tokenizer(want)["input_ids"]  # this tokenizer knows no lines or cases
    task = Translation(prompt="{source_language} / {target_language} / {text}")
    adapter = add_moved(model, "one", task)
    assert adapter.info.prompts == {"prompt": task.prompt}
    own = model.generate(["English / German / slow"], adapters="one", max_new_tokens=5)
    assert model.translate("slow", "en", "de", "one", max_new_tokens=5) == [own[0].strip()]
    assert model.translate("slow", "en", "de", "one", max_new_tokens=5) != model.translate(
        "slow", "en", "de", max_new_tokens=5
    )


def test_a_decoder_that_goes_on_gives_its_first_line():
    backbone = SimpleNamespace(kind="decoder")
    finish = Translation().finish
    assert finish(" Das Zimmer.\nEnglish:", ROWS[0], backbone) == "Das Zimmer."
    assert finish("eins\nzwei\n", pair("one\ntwo", ""), backbone) == "eins\nzwei"
    assert finish("a\nb", ROWS[0], SimpleNamespace(kind="encoder-decoder")) == "a\nb"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("nllb", marks=pytest.mark.slow), "qwen3"])
def test_training_brings_translations_that_survive_saving(kind, load):
    model, task = load(kind), Translation(languages=("en", "de"))
    rows = [pair("the room", "rude"), pair("staff", "slow"), pair("view", "clean")]
    # The head of nllb is of single letters: it takes longer until what is written differs by row.
    examples, adapter = learn_task(model, task, rows, steps=150 if kind == "qwen3" else 600)
    texts = [row.text for row in rows]
    got = model.translate(texts, "en", "de", "hotel", max_new_tokens=8)
    if kind == "qwen3":
        assert got == [row.fields["target"] for row in rows]
    final = task.final()
    blends = {"hotel": model.resolve("hotel"), "bare": ah.Blend()}
    found = scores_by_language(
        model, final, examples, {name: lambda row, b=blend: b for name, blend in blends.items()}
    )
    for column in ("de", "mean"):
        assert found["chrf++"]["hotel"][column] > found["chrf++"]["bare"][column] + 20
        assert found["bits"]["hotel"][column] < found["bits"]["bare"][column]
    assert set(found) == {"bits", "chrf++", "bleu", "wrong_language"}
    model.library.add(adapter.save(model.library.root.parent / "kept"), name="again")
    assert load(kind).translate(texts, "en", "de", "again", max_new_tokens=8) == got


def test_a_row_goes_over_the_adapter_of_the_language_it_is_written_in(load, lora_folder):
    model = load("qwen3")
    model.library.add(lora_folder("qwen3", "one"), name="de", language="de")
    german = model.resolve("de")
    over = lambda row: german if row.language == "de" else ah.Blend()
    task = Translation()
    examples = task.encode([ROWS[0], ROWS[2]], model.backbone)
    assert [row.language for example in examples for row in task.rows(example.row)] == ["de", "en"]
    assert [task.language(example.row) for example in examples] == ["de", "en"]
    records = collect_records(model, task, examples, over)
    want = losses(model, [ROWS[0], ROWS[2]], ["de", None])
    assert [record["nats"] for record in records] == pytest.approx(want.tolist(), rel=1e-4)


def test_wrong_arguments(load):
    model = load("qwen3")
    with pytest.raises(SettingsError, match="source: 2 for 1 texts"):
        model.translate("a", ["en", "de"], "fr")
    with pytest.raises(SettingsError, match="batch_size=0"):
        model.translate("a", "en", "fr", batch_size=0)
    with pytest.raises(SettingsError, match="a text has one translation here"):
        model.translate("a", "en", "fr", num_return_sequences=2, num_beams=2)
    assert model.translate([], "en", "fr") == []
    with pytest.raises(DataError, match="p:1: field 'target_language' is missing"):
        Translation().encode([Row("a", language="en", where="p:1", fields={"target": "b"})],
                             model.backbone)  # fmt: skip


# ── scores ───────────────────────────────────────────────────────────────────────────────────────


def test_scores_are_sacrebleus():
    import sacrebleu

    written = ["the room was very clean indeed", "staff rude and slow today"]
    gold = ["the room was clean indeed", "the staff was rude and slow today"]
    pairs = list(zip(written, gold, strict=True))
    assert bleu(pairs, "de") == sacrebleu.corpus_bleu(written, [gold]).score > 10
    assert chrf_plus_plus(pairs) == sacrebleu.corpus_chrf(written, [gold], word_order=2).score
    chinese = [("房间很干净,服务很好", "房间非常干净,服务很好")]
    want = sacrebleu.corpus_bleu([chinese[0][0]], [[chinese[0][1]]], tokenize="zh").score
    assert bleu(chinese, "zh-Hans") == want != bleu(chinese, "de")
    want = sacrebleu.corpus_bleu([chinese[0][0]], [[chinese[0][1]]], tokenize="char").score
    assert bleu(chinese, "ja") == want
    assert "tok:zh" in signature("bleu", "zh")
    assert "nw:2" in signature("chrf++")
    assert signature("bleu", "de").startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|versio")


@pytest.mark.slow
def test_the_share_in_the_wrong_language():
    german = "Das Zimmer war sauber und sehr ruhig, wir kommen wieder."
    english = "The room was clean and very quiet, we will come again."
    languages = ("en", "de", "fr")
    assert wrong_language([german, english, english, ""], "de", languages) == 0.75
    assert wrong_language([german, english], "en", ["de-AT", "en-GB"]) == 0.5
    assert wrong_language([german], "tlh", languages) is None  # the identifier does not know it
    assert wrong_language([german], "de", ["de"]) is None


def test_a_table_is_by_target_language_and_leaves_out_what_cannot_be_measured(load):
    model = load("qwen3")
    task = Translation(languages=("en", "de", "zh", "uk"), max_new_tokens=4).final()
    rows = [*ROWS, pair("slow", "rude", language="tlh")]
    found = scores_by_language(
        model, task, task.encode(rows, model.backbone), {"bare": lambda row: ah.Blend()}
    )
    assert set(found["bleu"]["bare"]) == {"de", "en", "uk", "zh", "tlh", "mean"}
    assert set(found["wrong_language"]["bare"]) == {"de", "en", "uk", "zh", "mean"}
    notes = {shown.metric: shown.note for shown in task.shown(model.backbone)}
    assert "tok:13a" in notes["bleu"]
    assert "tok:zh" in notes["bleu"]


def test_what_is_not_installed_is_said_with_its_command(monkeypatch):
    from adapters_hub.metrics import text_scores

    monkeypatch.setattr(text_scores, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'adapters-hub\[translation\]'"):
        Translation.from_rows(TranslationOptions(), {"train": ROWS}, {})
    assert make_task("generation").final().writes is False


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def test_texts_of_one_id_translate_each_other():
    rows = [
        Row(f"{tag} {item}", language=tag, key=str(item))
        for item in range(3)
        for tag in ("en", "de", "fr")
    ]
    found = translations(rows, {})
    assert len(found) == 3 * 6
    for row in found:
        tag, item = row.fields["target"].split()
        assert tag == row.fields["target_language"] != row.language
        assert row.key == item
    only = translations(rows, {}, ("de",))
    assert {(row.language, row.fields["target_language"]) for row in only} == {
        ("en", "de"), ("fr", "de"),
    }  # fmt: skip
    lone = Row("alone", language="en", key="x")
    given = pair("a", "b", language="German")
    assert translations([lone, given], {}) == [lone, pair("a", "b")]
    assert translations([given], {}, ("fr",)) == []
    nameless = Row("a", language="en", where="p:1", fields={"target": "b"})
    assert translations([nameless], {}, ("de",))[0].fields["target_language"] == "de"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (pair("a", "b", language="qqq9"), "p:1: field 'tl'.*not a language"),
        (pair("a", "b", language=None), "p:1: field 'tl' is missing, and translation needs it"),
        (pair("a", "b", source=None), "p:1: field 'language' is missing, and translation needs"),
    ],
)
def test_a_pair_says_both_its_languages(row, message):
    with pytest.raises(DataError, match=message):
        translations([row], {"target_language": "tl"})


def test_text_files_are_parallel_line_by_line(tmp_path):
    (tmp_path / "de.txt").write_text("eins\n\ndrei\n")
    (tmp_path / "en.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "LICENSE.txt").write_text("not a text\n")
    other = tmp_path / "more"
    other.mkdir()
    (other / "de.txt").write_text("anders\n")
    rows = read_data(tmp_path)["train"]
    assert [(row.text, row.language) for row in rows] == [
        ("eins", "de"), ("drei", "de"), ("one", "en"), ("two", "en"), ("three", "en"),
        ("anders", "de"),
    ]  # fmt: skip
    pairs = {(row.text, row.fields.get("target")) for row in translations(rows, {})}
    assert pairs == {
        ("eins", "one"), ("one", "eins"), ("drei", "three"), ("three", "drei"), ("two", None),
        ("anders", None),
    }  # fmt: skip
    (row,) = read_data(other / "de.txt")["train"]
    assert (row.text, row.where) == ("anders", f"{other / 'de.txt'}:1")


# ── the recipe ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def parallel(tmp_path):
    """Line-aligned files in three languages, of words the tiny tokenizers know."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, lines in (("train", 12), ("dev", 4), ("test", 4)):
        for shift, language in enumerate(("en", "de", "uk")):
            texts = [" ".join(WORDS[(n * 3 + k + shift) % len(WORDS)] for k in range(3))
                     for n in range(lines)]  # fmt: skip
            (folder / f"{language}.{split}.txt").write_text("\n".join(texts) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["qwen3", "nllb"])
@pytest.mark.slow
def test_two_processes_give_the_adapter_of_one(kind, tiny, nllb, parallel, tmp_path, lora_folder):
    backbone = nllb if kind == "nllb" else tiny(kind)
    found = []
    for processes in (1, 2):
        library = tmp_path / f"library{processes}"
        if kind == "qwen3":
            for tag in ("en", "de"):
                ah.Library(library).add(lora_folder(kind, tag), name=tag, language=tag)
        running = launch(
            "lora_domain.py", "--task", "translation", "--backbone", backbone, "--data", parallel,
            "--library", library, "--steps", 6, "--batch-size", 6, "--rank", 2, "--accumulation",
            processes, "--cpu", "--max-new-tokens", 4, "--name", "news", "--language", "en",
            "--target-language", "German", "uk", processes=processes, cwd=tmp_path,
        )  # fmt: skip
        output, _ = running.communicate(timeout=400)
        assert running.returncode == 0, output
        assert "rows: {'train': 24, 'dev': 8, 'test': 8}" in output
        for shown in ("bits per byte", "chrF++", "BLEU", "share in the wrong language"):
            assert f"{shown} on 8 test texts" in output
        assert "nrefs:1|case:mixed" in output
        assert "source='en', target='de'" in output
        model = ah.load_backbone(str(backbone), library=library)
        found.append(model.adapter("news"))
    assert_same(*found)
    assert found[0].info.over == (("de",) if kind == "qwen3" else ())
    assert {"BLEU, news", "chrF++, bare backbone (head only)"} <= set(found[0].info.metrics)


def test_wrong_rows_end_the_recipe(tiny, parallel, tmp_path, monkeypatch):
    (tmp_path / "lone.jsonl").write_text('{"text": "a", "language": "en"}\n' * 3)
    common = ["--task", "translation", "--backbone", tiny("qwen3"), "--library", "library", "--cpu"]
    for data, flags, message in (
        (parallel, ["--target-language", "fr"], "no train rows in any language"),
        (parallel, ["--target-language", "qqq9"], "not a language"),
        (parallel, ["--backbone", tiny("bert")], "an encoder, which reads a text as a whole"),
        ("lone.jsonl", [], "lone.jsonl:[123]: field 'target' is missing"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(
                "lora_domain.py", *common, "--data", data, "--name", "x", *flags,
                monkeypatch=monkeypatch, cwd=tmp_path,
            )  # fmt: skip
        assert not list(tmp_path.glob("library/*"))


@pytest.mark.parametrize(
    ("task", "name", "call"),
    [
        pytest.param(
            "translation", "my-hotel-translation", "model.translate(", marks=pytest.mark.slow
        ),
        ("generation", "my-hotel-answers", "model.generate([{'text': "),
    ],
)
def test_the_samples(tiny, tmp_path, monkeypatch, capsys, task, name, call):
    run(
        "lora_domain.py", "--task", task, "--backbone", tiny("qwen3"), "--library", "library",
        "--cpu", "--steps", 2, "--rank", 2, "--batch-size", 4, "--max-new-tokens", 2,
        "--max-length", 1000, monkeypatch=monkeypatch, cwd=tmp_path,
    )  # fmt: skip
    assert call in capsys.readouterr().out
    info = ah.Library(tmp_path / "library").get(name)
    assert (info.task, info.domain) == (task, "hotel")
