"""The loss over a large vocabulary, a block of positions at a time, against the plain formula."""

import logging

import pytest
import torch
import transformers as t
from conftest import TEXTS, VOCABULARY, tiny_tokenizer
from torch.nn import functional

import adapters_hub as ah
from adapters_hub.backbone.backbone import site_shape
from adapters_hub.data.rows import Row
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.tasks import cross_entropy
from adapters_hub.tasks.bits import IGNORED
from adapters_hub.tasks.cross_entropy import blocked_cross_entropy
from adapters_hub.tasks.generation import Generation
from adapters_hub.tasks.language_modeling import LanguageModeling

BODY = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
}  # fmt: skip
KV = {"num_key_value_heads": 1, "head_dim": 16}
T5 = {
    "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2,
    "vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0,
}  # fmt: skip
MOE = {"num_local_experts": 2, "num_experts_per_tok": 1, "output_router_logits": False}
CONFIGS = {
    "gemma2": lambda: t.Gemma2Config(**BODY, **KV, final_logit_softcapping=2.0),
    "gemma3-capped": lambda: t.Gemma3TextConfig(**BODY, **KV, final_logit_softcapping=1.0),
    "cohere": lambda: t.CohereConfig(**BODY, logit_scale=0.25),
    "granite": lambda: t.GraniteConfig(**BODY, logits_scaling=4.0),
    "untied": lambda: t.LlamaConfig(**BODY, tie_word_embeddings=False),
    "mixtral": lambda: t.MixtralConfig(**BODY, **KV, **MOE),
    "phi": lambda: t.PhiConfig(**BODY),  # a bias
    "gptj": lambda: t.GPTJConfig(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, n_positions=64
    ),
    "t5-tied": lambda: t.T5Config(**T5, tie_word_embeddings=True),
    "t5-gated": lambda: t.T5Config(**T5, feed_forward_proj="gated-gelu"),
    "roberta": lambda: t.RobertaConfig(**BODY, max_position_embeddings=130),
    "albert": lambda: t.AlbertConfig(**BODY, embedding_size=16),
    "distilbert": lambda: t.DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=2, hidden_dim=48
    ),
}
KINDS = [
    *("qwen3", "llama", "gemma3", "gpt2", "bert", "xlm-roberta", "modernbert", "mt5", "m2m100"),
    *("bart", *CONFIGS),
]
MASKED = ("roberta", "albert", "distilbert")
ROWS = [
    Row(text, language="en", fields={"target": " ".join([TEXTS[3]] * (n + 1))})
    for n, text in enumerate(TEXTS[:4])
]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    made = {}

    def of(kind):
        if kind not in CONFIGS:
            return tiny(kind)
        if kind not in made:
            torch.manual_seed(0)
            config = CONFIGS[kind]()
            class_ = t.AutoModelForMaskedLM if kind in MASKED else t.AutoModelForCausalLM
            class_ = t.AutoModelForSeq2SeqLM if config.is_encoder_decoder else class_
            model = class_.from_config(config)
            for parameter in model.parameters():
                parameter.data.add_(torch.randn_like(parameter) * 0.05)
            made[kind] = tmp_path_factory.mktemp("heads") / kind
            model.save_pretrained(made[kind])
            tiny_tokenizer().save_pretrained(made[kind])
        return made[kind]

    return of


@pytest.fixture
def load(folder, tmp_path):
    return lambda kind: ah.load_backbone(str(folder(kind)), library=tmp_path, device="cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Three positions at a time."""
    monkeypatch.setattr(cross_entropy, "BLOCK_BYTES", 3 * 4 * VOCABULARY)


def batch_of(model):
    """A batch with padding, and with a prompt where the architecture is read in one go."""
    task = LanguageModeling() if model.backbone.kind == "encoder" else Generation()
    return task, task.collate(task.encode(ROWS, model.backbone), model.backbone, seed=3)


def plain_nats(model, batch):
    """The formula on the logits of the whole model."""
    inputs = {key: batch[key] for key in batch if key != "labels"}
    logits, labels = model.backbone.model(**inputs).logits, batch["labels"]
    if model.backbone.kind == "decoder":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return functional.cross_entropy(
        logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
    ).sum(1)


def learner(model, name, *, body=True, head=False, trained=True):
    """A resident adapter with factors away from zero, at the sites of the body and of the head."""
    backbone = model.backbone
    sites = [*(backbone.lm_sites if body else ()), *(sorted(backbone.head_sites) if head else ())]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    draw = lambda *shape: torch.randn(*shape, generator=generator) * 0.1
    shapes = {site: site_shape(backbone.sites[site]) for site in sites}
    factors = {site: (draw(3, fan_in), draw(out, 3)) for site, (fan_in, out) in shapes.items()}
    info = AdapterInfo(name=name, task="language-modeling", backbone=backbone.name)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": sites}
    scaling = dict.fromkeys(sites, 2.0)
    adapter = Adapter(info, factors, scaling, {}, config, backbone.prefix, backbone.head_sites)
    return model.add(adapter.trainable() if trained else adapter, trained)


def gradients(nats, adapters):
    """What the rows' nats, each at a weight, bring to every factor."""
    parameters = [tensor for adapter in adapters for tensor in adapter.parameters()]
    weights = torch.tensor([1.0, 0.5, 2.0, 0.25]).to(nats)
    return torch.autograd.grad((nats * weights).sum(), parameters, allow_unused=True)


def compare(model, task, batch, adapters, blends, **tolerance):
    """Loss and gradients by blocks are those of the plain formula."""
    with model.adapted(4, blends):
        got, want = task.loss(model, batch, []), plain_nats(model, batch)
    torch.testing.assert_close(got, want.float(), **tolerance)
    pairs = zip(gradients(got, adapters), gradients(want, adapters), strict=True)
    for by_blocks, plain in pairs:
        assert (by_blocks is None) == (plain is None)
        if plain is not None:
            torch.testing.assert_close(by_blocks, plain, **tolerance)
    with torch.no_grad(), model.adapted(4, blends):
        torch.testing.assert_close(task.loss(model, batch, []), want.float(), **tolerance)


CLOSE = {"atol": 2e-5, "rtol": 2e-5}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_by_blocks_are_the_plain_ones(kind, load):
    model = load(kind)
    assert model.splits_head
    task, batch = batch_of(model)
    compare(model, task, batch, [learner(model, "one")], "one", **CLOSE)


@pytest.mark.parametrize("kind", ["untied", "gemma2", "cohere", "bert", "xlm-roberta", "t5-gated"])
def test_adapters_that_act_on_the_head_do_so_for_their_rows(kind, load):
    model = load(kind)
    task, batch = batch_of(model)
    assert model.backbone.head_sites
    one, two = learner(model, "one", head=True), learner(model, "two", body=False, head=True)
    learner(model, "still", head=True, trained=False)
    compare(model, task, batch, [one, two], ["one", None, "two + still", "one - 0.5*two"], **CLOSE)
    compare(model, task, batch, [two], ["two"] * 4, **CLOSE)


def test_a_frozen_adapter_on_the_head_passes_gradients_to_the_body(load):
    model = load("untied")
    task, batch = batch_of(model)
    one = learner(model, "one")
    learner(model, "still", body=False, head=True, trained=False)
    blends = ["one + still", "one", "still", "one - still"]
    compare(model, task, batch, [one], blends, **CLOSE)


def test_an_adapter_absent_from_a_batch_gets_no_gradient(load):
    model = load("untied")
    task, batch = batch_of(model)
    one, two = learner(model, "one", head=True), learner(model, "two", head=True)
    with model.adapted(4, ["one", None, "one", "one"]):
        nats = task.loss(model, batch, [])
    assert all(gradient is None for gradient in gradients(nats, [two]))
    assert all(gradient is not None for gradient in gradients(nats, [one]))


def test_a_blend_a_token_holds_on_the_head_too(load):
    model = load("untied")
    task, batch = batch_of(model)
    one, two = learner(model, "one", head=True), learner(model, "two", head=True)
    tokens = batch["input_ids"].shape[1]
    blends = [["one"] * cut + ["two + one"] * (tokens - cut) for cut in (0, 3, 7, tokens)]
    compare(model, task, batch, [one, two], blends, **CLOSE)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("kind", ["untied", "gemma2", "bert"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(kind, head, dtype, load):
    model = load(kind)
    task, batch = batch_of(model)
    one = learner(model, "one", head=head)
    with torch.autocast("cpu", dtype):
        compare(model, task, batch, [one], ["one", "one", None, "one"], atol=0.05, rtol=0.05)


def test_gradient_checkpointing_of_the_body_beside_an_adapted_head(load):
    model = load("untied")
    task, batch = batch_of(model)
    one, blends = learner(model, "one", head=True), ["one", None, "one", "one"]
    with model.adapted(4, blends):
        want = gradients(plain_nats(model, batch), [one])
    model.enable_gradient_checkpointing()
    with model.adapted(4, blends):
        nats = task.loss(model, batch, [])
    for got, plain in zip(gradients(nats, [one]), want, strict=True):
        torch.testing.assert_close(got, plain, **CLOSE)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("kind", ["untied", "gemma2", "bert", "t5-gated"])
def test_logits_are_made_for_targets_alone_and_a_block_at_a_time(kind, head, load):
    model = load(kind)
    task, batch = batch_of(model)
    one = learner(model, "one", head=head)
    assert model.splits_head  # the probe is over
    seen = []
    model.backbone.model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(output.numel() // output.shape[-1])
    )
    with model.adapted(4, "one"):
        nats = task.loss(model, batch, [])
    targets = int((batch["labels"] != IGNORED).sum())
    assert max(seen) <= 3
    assert sum(seen) == targets < batch["labels"].numel()
    gradients(nats, [one])
    assert max(seen) <= 3
    assert sum(seen) == targets * (1 + head)  # those of a head that learns are made again
    seen.clear()
    with torch.no_grad(), model.adapted(4, "one"):
        task.loss(model, batch, [])
    assert max(seen) <= 3
    assert sum(seen) == targets


def test_generating_asks_for_the_last_position_alone(load):
    for kind in ("qwen3", "gemma2", "gpt2"):
        model, seen = load(kind), []
        model.backbone.model.get_output_embeddings().register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(output.shape[1])
        )
        model.generate(TEXTS[:2], max_new_tokens=3)
        assert set(seen) == {1}


@pytest.mark.parametrize("kind", ["untied", "gemma2", "bert", "t5-tied"])
@pytest.mark.parametrize("by", ["dispatch_model", "add_hook_to_module"])
def test_a_model_with_accelerates_hooks_makes_logits_by_blocks_too(kind, by, load):
    """They put a forward on the model itself that would run it whole."""
    from accelerate import dispatch_model
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    plain, hooked = load(kind), load(kind)
    if by == "dispatch_model":
        dispatch_model(hooked.backbone.model, {"": "cpu"}, force_hooks=True)
    else:
        for module in {hooked.backbone.model, hooked.backbone.base}:
            add_hook_to_module(module, AlignDevicesHook("cpu", io_same_device=True))
    assert "forward" in vars(hooked.backbone.model)
    assert hooked.splits_head
    task, batch = batch_of(hooked)
    one = learner(hooked, "one", head=bool(hooked.backbone.head_sites))
    compare(hooked, task, batch, [one], ["one", None, "one", "one"], **CLOSE)
    learner(plain, "one", head=bool(plain.backbone.head_sites))
    with torch.no_grad(), hooked.adapted(4, "one"), plain.adapted(4, "one"):
        torch.testing.assert_close(task.loss(hooked, batch, []), task.loss(plain, batch, []))


def test_a_head_that_needs_more_than_the_last_hidden_states_is_called_whole(load, caplog):
    model = load("qwen3")
    task, batch = batch_of(model)
    whole = type(model.backbone.model)

    class Odd(whole):
        def forward(self, input_ids=None, **inputs):
            out = super().forward(input_ids=input_ids, **inputs)
            out.logits = out.logits + input_ids[..., None] % 7
            return out

    model.backbone.model.__class__ = Odd
    with caplog.at_level(logging.DEBUG, "adapters_hub"):
        compare(model, task, batch, [learner(model, "one")], "one", **CLOSE)
    assert not model.splits_head
    assert "does more than" in caplog.text


# ── the function alone ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_of_each_position_is_scaled_by_its_weight(dtype):
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, 8).to(dtype)
    hidden = torch.randn(7, 8).to(dtype).requires_grad_()
    targets, weights = torch.randint(VOCABULARY, (7,)), torch.rand(7)
    logits_of = lambda states, at: states @ weight.T
    got = blocked_cross_entropy(logits_of, hidden, targets, VOCABULARY, head_learns=False)
    plain = functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")
    torch.testing.assert_close(got, plain)
    (by_blocks,) = torch.autograd.grad((got * weights).sum(), hidden)
    (want,) = torch.autograd.grad((plain * weights).sum(), hidden)
    small = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
    torch.testing.assert_close(
        by_blocks, want, atol=small.get(dtype, 1e-5), rtol=small.get(dtype, 1e-5)
    )


@pytest.mark.parametrize("head_learns", [False, True])
def test_no_targets_no_loss(head_learns):
    hidden = torch.randn(0, 8, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.long)
    nats = blocked_cross_entropy(
        lambda states, at: states, hidden, targets, VOCABULARY, head_learns=head_learns
    )
    assert nats.shape == (0,)
    nats.sum().backward()


def test_blocks_are_of_one_size_and_cover_all_positions(monkeypatch):
    monkeypatch.setattr(cross_entropy, "BLOCK_BYTES", 10 * 4 * VOCABULARY)
    for positions in (1, 9, 10, 11, 19, 21, 100):
        spans = cross_entropy.blocks(positions, VOCABULARY)
        sizes = [span.stop - span.start for span in spans]
        assert sum(sizes) == positions == spans[-1].stop
        assert max(sizes) <= 10
    assert len(cross_entropy.blocks(3, 10**12)) == 3
