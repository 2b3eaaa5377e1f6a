"""PEFT's starts: what they begin with, what they train to, and what is stored of them."""

import pytest
import torch
from accelerate import Accelerator
from helpers.peft_loop import BATCHES, LABELS, ours, rows, theirs, tiny_decoder
from helpers.training import assert_same
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.config import LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import adapters_hub as ah
from adapters_hub.errors import SettingsError
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.tasks import make_task
from adapters_hub.tasks.language_modeling import LanguageModeling
from adapters_hub.training.checkpoint import Checkpoint, Trainee
from adapters_hub.training.loop import train_adapters
from adapters_hub.training.settings import TrainingSettings
from adapters_hub.training.starts import Beginning

SUBTRACTED = ("pissa", "olora", "lora_ga")
RANK, ALPHA = 4, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_decoder(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def model(folder, tmp_path):
    return ah.load_backbone(str(folder), library=tmp_path / "library", device="cpu")


def fresh(model, task, name="one", **options):
    options = {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear", **options}
    lora = LoraConfig(task_type=task.peft_task_type(model.backbone), **options)
    info = AdapterInfo(name=name, task=task.name, labels=task.labels)
    return task.new_adapter(info, model.backbone, lora, seed=1)


def beginning(model, task, examples, **settings):
    """What the run's adapters begin with."""
    given = TrainingSettings(batch_size=4, rank=RANK, **settings)
    owners = [0] * len(examples)
    nothing_below = lambda row: ah.Blend()
    return Beginning(
        model, task, examples, owners, BATCHES, nothing_below, given, Accelerator(cpu=True)
    )


def batches(model):
    """The rows of each batch as PEFT is given them, with labels."""
    for numbers in BATCHES:
        texts = [f"{rows()[i].text} </s>" for i in numbers]
        batch = model.backbone.tokenizer(texts, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        yield {**batch, "labels": labels}


@pytest.fixture(autouse=True)
def signs_that_rounding_leaves_alone(monkeypatch):
    """Singular vectors with signs that are the same for gradients that differ by rounding.

    LoRA-GA takes A and B from different ones, so that a sign is no matter of taste: PEFT itself
    begins elsewhere on another processor.
    """
    plain = torch.svd_lowrank

    def signed(*arguments, **options):
        u, s, v = plain(*arguments, **options)
        largest = u.abs().argmax(0, keepdim=True)
        signs = u.gather(0, largest).sign()
        return u * signs, s, v * signs

    monkeypatch.setattr(torch, "svd_lowrank", signed)


def started_by_peft(model, base, init, **options):
    """PEFT's model, started by its own functions on the run's batches."""
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", init_lora_weights=init,
        lora_ga_config=LoraGAConfig() if init == "lora_ga" else None,
        **options,
    )  # fmt: skip
    if init == "lora_ga":  # which knows "all-linear" only once it is spelt out
        names = {n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)}
        config.target_modules = names - {"lm_head"}

    def learn():
        for batch in batches(model):
            base(**batch).loss.backward()

    if init == "lora_ga":
        preprocess_loraga(base, config, learn)
    torch.manual_seed(0)  # the seed of the run's settings
    return get_peft_model(base, config)


def delta(adapter, site):
    a, b = adapter.factors[site]
    return adapter.scaling[site] * b @ a


def peft_layers(peft, model):
    """Site → PEFT's layer."""
    base = peft.base_model.model
    return {
        site: base.get_submodule(name)
        for name, module in model.backbone.model.named_modules()
        for site, other in model.backbone.sites.items()
        if other is module and site not in model.backbone.head_sites
    }


# ── the same as in PEFT ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", ["gaussian", "orthogonal", *SUBTRACTED])
def test_a_start_is_what_peft_computes(model, folder, init, rslora):
    task = LanguageModeling()
    adapter = fresh(model, task, use_rslora=rslora)
    begin = beginning(model, task, task.encode(rows(), model.backbone), init=init, rslora=rslora)
    begun, start = begin(0, adapter)
    base = AutoModelForCausalLM.from_pretrained(folder)
    before = {name: p.clone() for name, p in base.named_parameters()}
    peft = started_by_peft(model, base, init, use_rslora=rslora)
    assert begun.scaling == adapter.scaling
    assert (start is not None) == (init in SUBTRACTED)
    layers = peft_layers(peft, model)
    assert layers.keys() == begun.factors.keys()
    for site, layer in layers.items():
        a, b = begun.factors[site]
        torch.testing.assert_close(a, layer.lora_A["default"].weight.detach(), msg=site)
        torch.testing.assert_close(b, layer.lora_B["default"].weight.detach(), msg=site)
        assert a.abs().max() > 1e-3
        whole = before[next(n for n in before if n.endswith(f"{site}.weight"))]
        moved = whole - layer.base_layer.weight.detach()
        expected = delta(start, site) if start else torch.zeros_like(moved)
        torch.testing.assert_close(expected, moved, atol=2e-6, rtol=1e-4)
        if start:
            assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("init", SUBTRACTED)
def test_training_is_pefts_and_the_file_is_a_plain_delta(model, folder, tmp_path, init):
    task = LanguageModeling()
    examples = task.encode(rows(), model.backbone)
    trained = ours(model, task, fresh(model, task), examples, init=init)
    peft = started_by_peft(model, AutoModelForCausalLM.from_pretrained(folder), init)
    theirs(peft, [f"{row.text} </s>" for row in rows()], None, model.backbone.tokenizer)

    plain = AutoModelForCausalLM.from_pretrained(folder)
    weights = {n.removesuffix(".weight"): p.detach() for n, p in plain.named_parameters()}
    for site, layer in peft_layers(peft, model).items():
        scaled = layer.get_delta_weight("default").detach()
        (whole,) = (weight for name, weight in weights.items() if name.endswith(site))
        learnt = layer.base_layer.weight.detach() + scaled - whole
        torch.testing.assert_close(delta(trained, site), learnt, atol=2e-5, rtol=1e-3, msg=site)
        assert len(trained.factors[site][0]) <= 2 * RANK
        assert learnt.abs().max() > 1e-3
    loaded = PeftModel.from_pretrained(plain, trained.save(tmp_path / "stored"))
    for batch in batches(model):
        with torch.no_grad():
            bare, expected = model(**batch, adapters=None).logits, peft(**batch).logits
            got, resident = loaded(**batch).logits, model(**batch, adapters="one").logits
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(resident, expected, atol=1e-4, rtol=1e-4)
        assert (expected - bare).abs().max() > 0.1


def test_a_head_learns_beside_a_start(model, folder):
    task = make_task("classification", label_names=LABELS)
    adapter = fresh(model, task)
    trained = ours(model, task, adapter, task.encode(rows(), model.backbone), init="olora")
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS))
    head = {path.removeprefix("score."): t for path, t in adapter.head.items()}
    base.score.load_state_dict(head)
    peft = started_by_peft(model, base, "olora", modules_to_save=["score"])
    targets = [LABELS.index(row.label) for row in rows()]
    reference = theirs(peft, [row.text for row in rows()], targets, model.backbone.tokenizer)
    (name,) = (name for name in reference if "score" in name)
    torch.testing.assert_close(trained.head["score.weight"], reference[name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_eva_is_pefts(model, folder):
    task = LanguageModeling()
    adapter = fresh(model, task, use_rslora=True)
    examples = task.encode(rows(), model.backbone)
    begun, start = beginning(model, task, examples, init="eva", rslora=True)(0, adapter)
    assert start is None
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", init_lora_weights="eva",
        use_rslora=True, eva_config=EvaConfig(), task_type="CAUSAL_LM",
    )  # fmt: skip
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    initialize_lora_eva_weights(peft, list(batches(model)), show_progress_bar=False)
    layers = {
        site: layer for site, layer in peft_layers(peft, model).items() if hasattr(layer, "lora_A")
    }
    assert layers.keys() == begun.factors.keys()
    assert len({len(a) for a, _ in begun.factors.values()}) > 1  # ranks were shared out
    for site, layer in layers.items():
        a, b = begun.factors[site]
        torch.testing.assert_close(a, layer.lora_A["default"].weight.detach(), atol=1e-5, rtol=1e-4)
        assert not b.any()
        assert b.shape == layer.lora_B["default"].weight.shape
        assert begun.scaling[site] == pytest.approx(layer.scaling["default"])


def test_what_eva_began_is_trained_and_stored(model, folder, tmp_path):
    task = LanguageModeling()
    examples = task.encode(rows(), model.backbone)
    trained = ours(model, task, fresh(model, task), examples, init="eva")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    loaded = PeftModel.from_pretrained(plain, trained.save(tmp_path / "stored"))
    for batch in batches(model):
        with torch.no_grad():
            resident = model(**batch, adapters="one").logits
            torch.testing.assert_close(loaded(**batch).logits, resident, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "gpt2", "mt5"])
@pytest.mark.parametrize("init", ["olora", "eva", "lora_ga"])
def test_every_kind_of_backbone_begins(tiny, tmp_path, kind, init):
    """Also layers of GPT-2, which hold their weight the other way round, and two stacks."""
    model = ah.load_backbone(str(tiny(kind)), library=tmp_path / "library", device="cpu")
    task = make_task("classification", label_names=LABELS)
    examples = task.encode(rows(), model.backbone)
    before = {name: t.clone() for name, t in model.backbone.model.state_dict().items()}
    hooks = {n: len(m._forward_hooks) for n, m in model.backbone.model.named_modules()}
    # mt5's classifier is run on one token, and BERT's pooler on one of each of four rows
    adapter = fresh(model, task, r=2 if init == "eva" else RANK)
    begun, start = beginning(model, task, examples, init=init)(0, adapter)
    whole = sum(len(a) for a, _ in adapter.factors.values())
    assert sum(len(a) for a, _ in begun.factors.values()) == whole
    for site, (a, b) in begun.factors.items():
        assert a.isfinite().all()
        first_a, first_b = adapter.factors[site]
        assert (a.shape[1], b.shape[0]) == (first_a.shape[1], first_b.shape[0])
        assert (start is None) == (not b.any())
    assert {n: len(m._forward_hooks) for n, m in model.backbone.model.named_modules()} == hooks
    for name, tensor in model.backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(p.requires_grad for p in model.backbone.model.parameters())
    assert model.bank.names() == []


def test_parameters_lie_in_order_whatever_they_begin_with(model):
    """Else the fused optimizer pairs a tensor's numbers with others of its gradient."""
    begun = fresh(model, LanguageModeling()).map(lambda t: t.t().contiguous().t())
    assert not any(t.is_contiguous() for t in begun.parameters())
    live = begun.trainable()
    for tensor, before in zip(live.parameters(), begun.parameters(), strict=True):
        assert torch.equal(tensor, before)
        assert tensor.is_contiguous()


# ── a run ────────────────────────────────────────────────────────────────────────────────────────


def test_only_the_plain_adapter_is_left(model):
    before = {name: t.clone() for name, t in model.backbone.model.state_dict().items()}
    task = LanguageModeling()
    ours(model, task, fresh(model, task), task.encode(rows(), model.backbone), init="pissa")
    assert model.bank.names() == ["one"]
    for name, tensor in model.backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_several_with_starts_are_trained_as_each_alone(folder, tmp_path):
    task, kept = LanguageModeling(), {}
    for names in (("a",), ("b",), ("a", "b")):
        model = ah.load_backbone(str(folder), library=tmp_path / "library", device="cpu")
        examples = task.encode(rows(), model.backbone)
        owners = [0 if i < 4 or len(names) == 1 else 1 for i in range(8)]
        mine = {("a",): [[0, 1], [2, 3]], ("b",): [[4, 5], [6, 7]]}
        chosen = mine.get(names, [[0, 1, 4, 5], [2, 3, 6, 7]])
        settings = TrainingSettings(init="pissa", learning_rate=1e-2, warmup=0.0)
        made, _ = train_adapters(
            model, task, [fresh(model, task, name) for name in names], examples, owners, chosen,
            settings, Accelerator(cpu=True),
        )  # fmt: skip
        kept[names] = made
    for one, other in zip((*kept[("a",)], *kept[("b",)]), kept[("a", "b")], strict=True):
        for site in one.factors:
            torch.testing.assert_close(delta(one, site), delta(other, site), atol=2e-5, rtol=1e-3)


class Interrupted(LanguageModeling):
    """Stops the run at its third batch."""

    def loss(self, model, batch, heads):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return super().loss(model, batch, heads)


seen: list[int] = []


@pytest.mark.slow
@pytest.mark.parametrize("init", ["pissa", "eva"])
def test_a_start_survives_a_checkpoint(model, tmp_path, init):
    def run(task=None, folder=None):
        task = task or LanguageModeling()
        examples = task.encode(rows(), model.backbone)
        settings = TrainingSettings(init=init, save_every=1, learning_rate=1e-2, warmup=0.0)
        (made,), progress = train_adapters(
            model, task, [fresh(model, task)], examples, [0] * 8, BATCHES, settings,
            Accelerator(cpu=True), folder=folder, dev=examples[:2], dev_owners=[0, 0],
        )  # fmt: skip
        return made, progress

    whole, _ = run()
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(), tmp_path / "run")
    assert model.bank.names() == []
    resumed, _ = run(folder=tmp_path / "run")
    assert_same(whole, resumed, atol=0, rtol=0)


def test_a_checkpoint_brings_back_the_start_that_it_was_saved_with(tmp_path):
    def trainee(value):
        factors = {"site": (torch.full((1, 2), value), torch.full((2, 1), value))}
        adapter = ah.runtime.adapter.Adapter(AdapterInfo("a"), factors, {"site": 1.0})
        return Trainee.of(adapter.trainable(), TrainingSettings(), adapter)

    Checkpoint(tmp_path, TrainingSettings(), {}).save([trainee(1.0)], [], 2)
    later = trainee(3.0)
    there = later.start.factors["site"][0]
    assert Checkpoint(tmp_path, TrainingSettings(), {}).load([later], []) == 2
    assert torch.equal(there, torch.ones(1, 2))


# ── what cannot be ───────────────────────────────────────────────────────────────────────────────


def test_a_rank_that_the_weights_do_not_have(model):
    task = LanguageModeling()
    examples = task.encode(rows(), model.backbone)
    for init, most in (("pissa", 16), ("lora_ga", 8)):
        begin = beginning(model, task, examples, init=init)
        with pytest.raises(SettingsError, match=rf"init='{init}'.* a rank of {most} at most"):
            begin(0, fresh(model, task, r=most + 1))
        begin(0, fresh(model, task, r=most))


def test_eva_needs_inputs_enough(model):
    task = LanguageModeling()
    hooks = [len(m._forward_hooks) for m in model.backbone.model.modules()]
    examples = task.encode(rows(), model.backbone)
    with pytest.raises(SettingsError, match=r"looks for 60 directions at a rank of 30, and .* 3\d"):
        beginning(model, task, examples, init="eva")(0, fresh(model, task, r=30))
    assert [len(m._forward_hooks) for m in model.backbone.model.modules()] == hooks
    assert model.bank.names() == []


def test_weights_of_few_bits_have_no_such_start(folder, tmp_path):
    model = ah.load_backbone(str(folder), library=tmp_path / "library", device="cpu", bits=8)
    task = LanguageModeling()
    examples = task.encode(rows(), model.backbone)
    for init in SUBTRACTED:
        with pytest.raises(SettingsError, match=f"init='{init}' .* have 8 bits"):
            beginning(model, task, examples, init=init)(0, fresh(model, task))
    for init in ("eva", "orthogonal", "gaussian"):
        begun, start = beginning(model, task, examples, init=init)(0, fresh(model, task))
        assert start is None
        for a, b in begun.factors.values():
            assert a.abs().max() > 1e-3
            assert (b @ a).abs().max() < 1e-5
