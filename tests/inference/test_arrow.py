"""Arrow's votes: prototypes and weights as PEFT has them, and what comes of them for texts."""

import pytest
import torch
from helpers.task_adapters import adapters
from peft import ArrowConfig
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from torch import nn

import adapters_hub as ah
from adapters_hub.errors import SettingsError
from adapters_hub.inference.arrow import prototypes_of, votes_of
from adapters_hub.library.paths import bundled_root

TEXTS = ["Værelset var rent.", "Номер був чистий і тихий.", "", "The room was clean."]


@pytest.fixture(scope="module")
def model():
    return ah.load_backbone("starter", library=bundled_root())


def test_prototypes_and_votes_are_those_of_peft(model):
    made = [*adapters(model).values()][:4]
    site = next(iter(made[0].factors))
    width = made[0].factors[site][0].shape[1]
    config = ArrowConfig(top_k=2, router_temperature=0.7, rng_seed=0)
    config.task_adapter_names = []
    theirs = ArrowLoraLinearLayer(width, config)
    downs, ups = nn.ModuleDict(), nn.ModuleDict()
    for number, adapter in enumerate(made):
        a, b = adapter.factors[site]
        downs[f"task_{number}"], ups[f"task_{number}"] = nn.Linear(1, 1), nn.Linear(1, 1)
        downs[f"task_{number}"].weight = nn.Parameter(a)
        ups[f"task_{number}"].weight = nn.Parameter(b)
    theirs.on_adapter_change(downs, ups)
    ours = prototypes_of(made, site)
    exact = [torch.linalg.svd(b @ a).Vh[0] for a, b in (m.factors[site] for m in made)]
    for prototype, vector in zip(ours, exact, strict=True):
        assert abs(float(prototype @ vector)) == pytest.approx(1, abs=1e-5)
    theirs.register_buffer("prototypes", ours, persistent=False)  # their power iteration is rough
    states = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))
    delta = theirs(states, downs, ups, nn.Identity(), dict.fromkeys(downs, 2.0))
    weights = votes_of(states, ours, 2, 0.7)
    each = torch.stack([2.0 * states @ a.T @ b.T for a, b in (m.factors[site] for m in made)], -1)
    torch.testing.assert_close((each * weights[..., None, :]).sum(-1), delta, atol=1e-5, rtol=1e-4)


def test_weights_add_up_and_a_text_is_as_alone(model):
    terms = ["da", "uk", "en"]
    blends = model.route(TEXTS, terms, top=2)
    for text, blend in zip(TEXTS, blends, strict=True):
        assert {*blend.terms} <= {*terms}
        assert sum(weight for _, weight in blend.weights) == pytest.approx(1, abs=1e-3)
        (alone,) = model.route(text, terms, top=2)
        assert dict(blend.weights) == pytest.approx(dict(alone.weights), abs=2e-4)
    assert model.embed(TEXTS, blends).shape == (len(TEXTS), model.backbone.width)
    assert [str(blend) for blend in model.route(TEXTS[0], ["da"], top=1)] == ["da"]


def test_what_cannot_be(model):
    with pytest.raises(SettingsError, match="top=3"):
        model.route(TEXTS, ["da", "uk"], top=3)
    with pytest.raises(SettingsError, match="no texts"):
        model.route(TEXTS, ["auto"], top=1)
