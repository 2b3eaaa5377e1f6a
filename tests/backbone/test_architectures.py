"""Encoders with a pooler of another shape, of integers, or none; backbones that are stored oddly."""

import json
import logging

import pytest
import torch
import transformers
from conftest import VOCABULARY, tiny_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import adapters_hub as ah
from adapters_hub.errors import (
    BackboneError,
    HeadError,
    SettingsError,
    UnsupportedAdapterError,
)

WIDE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}


def saved(model, folder):
    """A checkpoint with weights away from zero, so that differences show."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.eval().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def peft_adapter(model, folder, **options):
    """A PEFT model with random factors (and head), saved."""
    torch.manual_seed(1)
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **options))
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3 if "lora_" in name else 0.1)
    peft.eval().save_pretrained(folder, save_embedding_layers=False)
    return peft


@pytest.fixture
def albert(tmp_path):
    config = transformers.AlbertConfig(embedding_size=16, **WIDE)
    saved(transformers.AlbertForMaskedLM(config), tmp_path / "albert")
    return tmp_path / "albert"


@pytest.fixture
def without_pooler(tmp_path):
    model = transformers.BertModel(transformers.BertConfig(**WIDE), add_pooling_layer=False)
    saved(model, tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize("kind", ["Albert", "IBert"])
def test_encoders_with_odd_layers_give_transformers_own_logits(kind, tmp_path, inputs):
    extra = {"embedding_size": 16} if kind == "Albert" else {"max_position_embeddings": 130}
    config = getattr(transformers, f"{kind}Config")(**WIDE, **extra)
    plain = saved(getattr(transformers, f"{kind}ForMaskedLM")(config), tmp_path / kind)
    model = ah.load_backbone(str(tmp_path / kind), library=tmp_path / "library")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits)
        states = plain.base_model(**inputs).last_hidden_state
    texts = ["never again", "the room was clean and quiet"]
    assert model.embed(texts).shape == (2, 32)
    assert states.shape == (4, 9, 32)
    if kind == "IBert":  # its position embeddings count from the padding token on
        assert model.backbone.max_tokens == 129


def test_an_adapter_on_albert_is_what_peft_makes_of_it(albert, tmp_path, inputs):
    """One layer stands for all of them, and its delta acts each time it is called."""
    base = transformers.AutoModelForMaskedLM.from_pretrained(albert)
    peft = peft_adapter(base, tmp_path / "lora", target_modules=["query", "ffn", "dense"])
    library = ah.Library(tmp_path / "library")
    library.add(tmp_path / "lora", name="one")
    model = ah.load_backbone(str(albert), library=library)
    with torch.no_grad():
        want = peft(**inputs).logits
        torch.testing.assert_close(model(**inputs, adapters="one").logits, want)
        torch.testing.assert_close(model.merge("one")(**inputs).logits, want)


def test_a_classifier_on_albert_brings_its_own_pooler(albert, tmp_path, inputs):
    base = transformers.AutoModelForSequenceClassification.from_pretrained(albert, num_labels=3)
    peft = peft_adapter(
        base, tmp_path / "lora", task_type="SEQ_CLS", target_modules=["query", "value"],
        modules_to_save=["classifier", "pooler"],
    )  # fmt: skip
    library = ah.Library(tmp_path / "library")
    library.add(tmp_path / "lora", name="one")
    model = ah.load_backbone(str(albert), library=library)
    texts = ["never again", "lovely view near the station"]
    batch = tiny_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        want = peft(**batch).logits.softmax(-1)
    got = [[row[f"LABEL_{i}"] for i in range(3)] for row in model.classify(texts, "one")]
    torch.testing.assert_close(torch.tensor(got), want, atol=1e-5, rtol=1e-4)
    merged = model.merge("one")
    merged.save_pretrained(tmp_path / "merged")
    again = type(merged).from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits.softmax(-1), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_an_encoder_without_a_pooler_embeds_at_every_precision(bits, without_pooler, tmp_path):
    if bits < 16:
        pytest.importorskip("bitsandbytes")
    texts = ["never again", "lovely view near the station"]
    plain = transformers.AutoModel.from_pretrained(without_pooler).eval()
    batch = tiny_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = plain(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    mask = batch["attention_mask"][..., None]
    want = torch.nn.functional.normalize((states * mask).sum(1), dim=-1)
    model = ah.load_backbone(str(without_pooler), library=tmp_path / "library", bits=bits)
    got = model.embed(texts, pooling="mean")
    assert ((got * want).sum(-1) > (0.9999 if bits == 32 else 0.98)).all()


def test_a_classifier_whose_pooler_is_lost_is_refused(without_pooler, tmp_path):
    auto = transformers.AutoModelForSequenceClassification
    library = ah.Library(tmp_path / "library")
    for name, saved_modules in (("lost", ["classifier"]), ("whole", ["classifier", "pooler"])):
        base = auto.from_pretrained(without_pooler, num_labels=2)
        peft_adapter(
            base, tmp_path / name, task_type="SEQ_CLS", target_modules=["query"],
            modules_to_save=saved_modules,
        )  # fmt: skip
    library.add(tmp_path / "whole", name="whole")
    advice = r"modules_to_save=\['classifier', 'pooler'"
    with pytest.raises(UnsupportedAdapterError, match=advice):
        library.add(tmp_path / "lost", name="lost")
    config = tmp_path / "lost" / "adapter_config.json"  # a backbone that is not at hand
    config.write_text(config.read_text().replace(str(without_pooler), "org/model"))
    library.add(tmp_path / "lost", name="lost")
    model = ah.load_backbone(str(without_pooler), library=library)
    with pytest.raises(UnsupportedAdapterError, match=advice):
        model.use("lost")
    assert set(model.classify(["never again"], "whole")[0]) == {"LABEL_0", "LABEL_1"}


def test_a_head_with_one_output_is_merged_as_a_regression(tiny, lora_folder, tmp_path, inputs):
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("bert", "stars", labels=1), name="stars")
    model = ah.load_backbone(str(tiny("bert")), library=library)
    with pytest.raises(HeadError, match="one output, a regression"):
        model.classify(["never again"], "stars")
    auto = transformers.AutoModelForSequenceClassification
    base = auto.from_pretrained(tiny("bert"), num_labels=1)
    peft = PeftModel.from_pretrained(base, lora_folder("bert", "stars", labels=1)).eval()
    with torch.no_grad():
        want = peft(**inputs).logits
    merged = model.merge("stars")
    merged.save_pretrained(tmp_path / "merged")
    again = auto.from_pretrained(tmp_path / "merged").eval()
    assert again.config.num_labels == 1
    assert again.config.problem_type == "regression"
    model.export("stars", tmp_path / "exported")
    base = auto.from_pretrained(tiny("bert"), num_labels=1)
    exported = PeftModel.from_pretrained(base, tmp_path / "exported").eval()
    with torch.no_grad():
        for same in (merged, again, exported):
            torch.testing.assert_close(same(**inputs).logits, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["m2m100", "bart", "bert", "t5"])
def test_a_merged_output_layer_survives_saving(kind, tiny, tmp_path, inputs):
    """It unties every embedding, for transformers then loads none as the copy of another."""
    if kind == "t5":
        folder = tmp_path / "t5"
        config = transformers.T5Config(
            d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, vocab_size=VOCABULARY,
            pad_token_id=0, eos_token_id=3, decoder_start_token_id=0,
        )  # fmt: skip
        saved(transformers.T5ForConditionalGeneration(config), folder)
    else:
        folder = tiny(kind)
    masked = kind == "bert"
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForSeq2SeqLM
    base = auto.from_pretrained(folder)
    if hasattr(base, "final_logits_bias"):
        base.final_logits_bias.normal_()
        base.save_pretrained(tmp_path / "biased")
        tiny_tokenizer().save_pretrained(tmp_path / "biased")
        folder = tmp_path / "biased"
        base = auto.from_pretrained(folder)
    assert base.config.tie_word_embeddings
    target = ["query", "decoder"] if masked else ["q" if kind == "t5" else "q_proj", "lm_head"]
    peft = peft_adapter(base, tmp_path / "lora", target_modules=target)
    library = ah.Library(tmp_path / "library")
    library.add(tmp_path / "lora", name="one")
    model = ah.load_backbone(str(folder), library=library)
    if not masked:
        inputs = {**inputs, "decoder_input_ids": inputs["input_ids"][:, :5]}
    merged = model.merge("one")
    merged.save_pretrained(tmp_path / "merged")
    again = auto.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        want = peft(**inputs).logits
        for logits in (
            model(**inputs, adapters="one").logits,
            merged(**inputs).logits,
            again(**inputs).logits,
        ):
            torch.testing.assert_close(logits, want, atol=1e-4, rtol=1e-4)


# ── padding ──────────────────────────────────────────────────────────────────────────────────────


def copied(folder, to):
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.fixture
def llama(tiny, tmp_path):
    (tmp_path / "llama").mkdir()
    return copied(tiny("llama"), tmp_path / "llama")


def changed(file, **values):
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **values}))


def test_a_padding_token_outside_the_embedding_gives_way_to_one_inside(llama, tmp_path, caplog):
    texts = ["never again", "the room was clean and quiet"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(VOCABULARY - len(tokenizer))])
    tokenizer.save_pretrained(llama)
    want = ah.load_backbone(str(llama), library=tmp_path / "library").generate(
        texts, max_new_tokens=4
    )
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    assert tokenizer.pad_token_id >= VOCABULARY
    tokenizer.save_pretrained(llama)
    changed(llama / "config.json", pad_token_id=None)
    with caplog.at_level(logging.WARNING, "adapters_hub"):
        model = ah.load_backbone(str(llama), library=tmp_path / "library")
    assert "'<padding>'" in caplog.text
    assert model.generate(texts, max_new_tokens=4) == want
    with pytest.raises(BackboneError, match=r"'<padding>' with number 256.*resize"):
        model.generate(["never <padding> again"], max_new_tokens=4)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_a_padding_token_that_no_embedding_can_have_is_passed_over(token, llama, tmp_path):
    texts = ["never again", "the room was clean and quiet"]
    want = ah.load_backbone(str(llama), library=tmp_path / "library").generate(
        texts, max_new_tokens=4
    )
    for file in ("config.json", "generation_config.json"):
        changed(llama / file, pad_token_id=token)
    model = ah.load_backbone(str(llama), library=tmp_path / "library")
    assert 0 <= model.backbone.pad_token_id < VOCABULARY
    assert model.generate(texts, max_new_tokens=4) == want


# ── stored quantised ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bits", [8, 4])
def test_a_checkpoint_that_is_stored_quantised_says_its_bits(bits, tiny, lora_folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    asked = transformers.BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    small = transformers.AutoModelForCausalLM.from_pretrained(
        tiny("llama"), quantization_config=asked
    )
    small.save_pretrained(tmp_path / "small")
    small.train()  # in eval mode a CPU repacks 4-bit layers, which such small ones do not survive
    tiny_tokenizer().save_pretrained(tmp_path / "small")
    library = ah.Library(tmp_path / "library")
    library.add(lora_folder("llama", "one"), name="one")
    name = str(tmp_path / "small")
    model = ah.load_backbone(name, library=library, check_backbone=False)
    assert model.backbone.bits == bits
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits, small(input_ids=ids).logits, atol=5e-2, rtol=5e-2
        )
        changed_by = model(input_ids=ids, adapters="one").logits - model(input_ids=ids).logits
    assert changed_by.abs().max() > 0.01
    with pytest.raises(BackboneError, match=f"cannot merge into {bits}-bit"):
        model.merge("one")
    with pytest.raises(BackboneError, match=f"stored in {bits} bits, so bits=16"):
        ah.load_backbone(name, library=library, bits=16)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors", "mxfp4"])
def test_other_quantised_checkpoints_are_refused_by_name(method, llama, tmp_path):
    changed(llama / "config.json", quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(BackboneError, match=f"quantised by {method}.*bits=4"):
        ah.load_backbone(str(llama), library=tmp_path / "library")


# ── devices ──────────────────────────────────────────────────────────────────────────────────────


def test_a_device_that_is_not_there_is_named(tiny, tmp_path):
    with pytest.raises(SettingsError, match="device='gpu'"):
        ah.load_backbone(str(tiny("llama")), library=tmp_path, device="gpu")
    wanted = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(SettingsError, match=f"device='{wanted}'"):
        ah.load_backbone(str(tiny("llama")), library=tmp_path, device=wanted)


@pytest.mark.parametrize(
    "stem",
    [
        "base_model.model.model.language_model.layers.",  # of a model of vision and language
        "base_model.model.language_model.model.layers.",  # its older name
        "base_model.model._orig_mod.model.layers.",  # behind torch.compile
        "module.base_model.model.model.layers.",  # behind DistributedDataParallel
    ],
)
def test_a_text_layer_under_other_names_is_the_same_layer(
    stem, tiny, lora_folder, tmp_path, inputs
):
    library = ah.Library(tmp_path / "library")
    source = lora_folder("qwen3", "plain")
    library.add(source, name="plain")
    weights = source / "adapter_model.safetensors"
    plain = "base_model.model.model.layers."
    tensors = {key.replace(plain, stem): value for key, value in load_file(weights).items()}
    assert not any(key.startswith(plain) for key in tensors)
    save_file(tensors, weights)
    library.add(source, name="renamed")
    model = ah.load_backbone(str(tiny("qwen3")), library=library)
    want, got = (model(**inputs, adapters=name).logits for name in ("plain", "renamed"))
    assert torch.equal(want, got)
    model.export("renamed", tmp_path / "exported")
    assert any(key.startswith(plain) for key in load_file(tmp_path / "exported" / weights.name))


def test_a_task_class_that_turns_the_cache_off_itself_is_called_without(tmp_path, inputs):
    part = {**WIDE, "num_key_value_heads": 1, "head_dim": 16}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = transformers.T5GemmaConfig(encoder=part, decoder=part, **ids)
    saved(transformers.T5GemmaForConditionalGeneration(config), tmp_path / "t5gemma")
    backbone = ah.load_backbone(str(tmp_path / "t5gemma"), library=tmp_path / "library").backbone
    shell = backbone.shell("AutoModelForSequenceClassification", num_labels=3)
    head = shell.initial_head(seed=0)
    plain = transformers.T5GemmaForSequenceClassification.from_pretrained(
        tmp_path / "t5gemma", num_labels=3
    )
    plain.load_state_dict(head, strict=False)
    with torch.no_grad():
        (got,) = shell([(head, None)], inputs)
        torch.testing.assert_close(got, plain.eval()(**inputs).logits)


def test_a_layer_of_8_bit_floats_is_refused_with_what_to_do(lora_folder, tmp_path):
    source = lora_folder("qwen3", "small")
    weights = source / "adapter_model.safetensors"
    save_file({k: v.to(torch.float8_e4m3fn) for k, v in load_file(weights).items()}, weights)
    with pytest.raises(UnsupportedAdapterError, match="save the tensors again as float16"):
        ah.Library(tmp_path / "library").add(source)
