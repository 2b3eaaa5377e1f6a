"""What a trained adapter is kept as: cut to the energy or rank that was asked, else untouched."""

import re

import pytest
import torch
from conftest import TEXTS
from helpers.peft_loop import tiny_decoder
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.library.adapter_file import read_adapter
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.tasks import make_task
from adapters_hub.training.checkpoint import Trainee
from adapters_hub.training.finishing import plain
from adapters_hub.training.settings import TrainingSettings, parse_settings

ROWS = [Row(text, language="en", domain="hotel") for text in TEXTS[:4]]


def delta(adapter, site):
    a, b = adapter.factors[site]
    return adapter.scaling[site] * b.double() @ a.double()


def squares(matrix):
    return torch.linalg.svdvals(matrix).square()


@pytest.fixture
def adapter(lora_folder, tiny):
    """An rsLoRA of rank 4 whose directions are of very different sizes."""
    files = read_adapter(lora_folder("qwen3", "one", use_rslora=True), "one")
    backbone = ah.load_backbone(str(tiny("qwen3")), library="none", device="cpu").backbone
    made = Adapter.load(files, backbone, check_backbone=False)
    for number, (_, b) in enumerate(made.factors.values()):
        b *= torch.tensor([1.0, 0.5, 0.3, 0.2]) ** (1 + number % 3)
    return made


def test_without_a_start_and_a_cut_it_is_untouched(adapter):
    assert plain(adapter, None, TrainingSettings()) is adapter


@pytest.mark.parametrize("cut", [0.5, 0.8, 0.95, 0.999])
def test_a_cut_keeps_the_energy_and_no_rank_more(adapter, cut):
    kept = plain(adapter, None, TrainingSettings(cut=cut))
    ranks = set()
    for site in adapter.factors:
        whole, rank = squares(delta(adapter, site)), len(kept.factors[site][0])
        assert squares(delta(kept, site)).sum() >= (cut - 1e-6) * whole.sum()
        assert whole[: rank - 1].sum() < cut * whole.sum()
        lost = (delta(adapter, site) - delta(kept, site)).square().sum()
        torch.testing.assert_close(lost, whole[rank:].sum(), atol=1e-6, rtol=1e-4)
        ranks.add(rank)
    assert len(ranks) > 1 or cut == 0.5
    assert kept.info.rank == max(ranks)


def test_all_of_the_energy_is_the_same_delta(adapter):
    kept = plain(adapter, None, TrainingSettings(cut=1.0))
    for site in adapter.factors:
        torch.testing.assert_close(delta(kept, site), delta(adapter, site), atol=1e-6, rtol=1e-5)
        assert len(kept.factors[site][0]) == 4


def test_a_rank_is_the_most_there_may_be(adapter):
    by_rank = plain(adapter, None, TrainingSettings(cut_rank=2))
    both = plain(adapter, None, TrainingSettings(cut_rank=2, cut=0.95))
    energy = plain(adapter, None, TrainingSettings(cut=0.95))
    for site in adapter.factors:
        assert len(by_rank.factors[site][0]) == 2
        torch.testing.assert_close(
            squares(delta(by_rank, site))[:2], squares(delta(adapter, site))[:2], rtol=1e-5, atol=0
        )
        assert len(both.factors[site][0]) == min(2, len(energy.factors[site][0]))


def test_the_start_is_taken_off(adapter):
    start = adapter.map(lambda t: t * 0.9)
    kept = plain(adapter, start, TrainingSettings())
    for site in adapter.factors:
        expected = delta(adapter, site) - delta(start, site)
        torch.testing.assert_close(delta(kept, site), expected, atol=1e-6, rtol=1e-5)
    assert kept.info.description is None


def test_a_cut_run_says_what_it_kept_and_is_plain_peft(
    tiny, tmp_path, monkeypatch, inputs, fresh_accelerate
):
    monkeypatch.chdir(tmp_path)
    model = ah.load_backbone(str(tiny("qwen3")), library=tmp_path / "library", device="cpu")
    info = ah.train(
        model, ROWS, task="language-modeling", domain="hotel", steps=4, batch_size=4, rank=8,
        rslora=True, cut=0.9, learning_rate=1e-2, cpu=True,
    )  # fmt: skip
    said = re.fullmatch(
        r"Cut after training \(energy=0.9\): it keeps rank (\d+) to (\d+) \(mean [\d.]+ over "
        r"(\d+) sites\), (\d+\.\d+)% of the energy\.",
        info.description,
    )
    least, most, sites = map(int, said.groups()[:3])
    assert 90 <= float(said[4]) < 100
    assert 1 <= least < most == info.rank
    assert sites == info.sites
    assert info.description in (tmp_path / "library" / "hotel" / "README.md").read_text()
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny("qwen3")), info.path
    )
    config = loaded.peft_config["default"]
    assert config.rank_pattern
    assert set(config.rank_pattern) == set(config.alpha_pattern)
    with torch.no_grad():
        ours = model(**inputs, adapters="hotel").logits
        model.drop("hotel")
        torch.testing.assert_close(model(**inputs, adapters="hotel").logits, ours)
        torch.testing.assert_close(loaded(**inputs).logits, ours, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("other", [{"lora_plus": 1.0}, {"init": None, "cut": None}])
def test_what_is_off_changes_no_bit(tiny, tmp_path, monkeypatch, fresh_accelerate, other):
    monkeypatch.chdir(tmp_path)
    kept = []
    for number, settings in enumerate(({}, other)):
        model = ah.load_backbone(str(tiny("qwen3")), library=tmp_path / str(number), device="cpu")
        ah.train(
            model, ROWS, task="language-modeling", domain="hotel", steps=4, batch_size=4, rank=4,
            weight_decay=0.1, cpu=True, **settings,
        )  # fmt: skip
        kept.append(model.resident("hotel"))
    assert all(torch.equal(*pair) for pair in zip(*(k.parameters() for k in kept), strict=True))
    trainee = Trainee.of(kept[0].trainable(), TrainingSettings())
    assert [len(group["params"]) for group in trainee.optimizer.param_groups] == [
        2 * len(kept[0].factors)
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cut": 0.0}, "cut=0.0: must be a share"),
        ({"cut": 8.0}, r"cut=8.0: must be a share .*a rank is cut_rank"),
        ({"cut_rank": 0}, "cut_rank=0: must be 1 or more"),
        ({"lora_plus": 0.5}, "lora_plus=0.5: must be 1 or more"),
        ({"lora_plus": float("nan")}, "lora_plus=nan: must be 1 or more"),
        ({"init": "loftq"}, "init='loftq': choose one of gaussian, orthogonal, pissa, olora, eva"),
        ({"init": "orthogonal", "rank": 3}, "rank=3: init='orthogonal' needs an even one"),
    ],
)
def test_values_that_cannot_work(values, message):
    with pytest.raises(SettingsError, match=message):
        TrainingSettings(**values)


def test_pefts_names_are_taken_and_the_help_names_the_papers(capsys):
    settings = parse_settings(
        ["--init-lora-weights", "pissa", "--loraplus-lr-ratio", "16"]
    ).settings
    assert (settings.init, settings.lora_plus) == ("pissa", 16.0)
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    papers = ("2312.03732", "2402.12354", "2404.02948", "2406.01775", "2410.07170", "2407.05000")
    for paper in papers:
        assert f"arXiv:{paper}" in text


def test_experts_are_cut_each_by_itself_and_stay_a_peft_adapter(tmp_path):
    """An expert's slice is a site; PEFT's file has one rank for all of a parameter's."""
    folder = tiny_decoder(
        tmp_path / "backbone", Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=24,
    )  # fmt: skip
    model = ah.load_backbone(str(folder), library=tmp_path / "library", device="cpu")
    task = make_task("language-modeling")
    lora = LoraConfig(r=4, target_modules=["q_proj"], target_parameters=["experts.down_proj"])
    adapter = task.new_adapter(ah.AdapterInfo(name="one", task=task.name), model.backbone, lora)
    generator = torch.Generator().manual_seed(2)
    for number, (_, b) in enumerate(adapter.factors.values()):
        b.normal_(generator=generator)
        b *= torch.tensor([1.0, 0.5, 0.3, 0.2]) ** (number % 3)
    kept = plain(adapter, None, TrainingSettings(cut=0.8))
    assert len({len(a) for a, _ in kept.factors.values()}) > 1
    for site in adapter.factors:
        whole = squares(delta(adapter, site)).sum()
        assert 0.8 * whole <= squares(delta(kept, site)).sum() <= whole
    saved = kept.save(tmp_path / "kept")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), saved)
    model.add(kept)
    ids = torch.arange(4, 12).view(2, 4)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        torch.testing.assert_close(
            model(**inputs, adapters="one").logits, peft(**inputs).logits, atol=1e-4, rtol=1e-4
        )
