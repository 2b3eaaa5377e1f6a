"""What adapters start with beside plain LoRA's random A and zero B, as PEFT computes it.

PiSSA, OLoRA and LoRA-GA start with B₀·A₀ ≠ 0 and take s·B₀·A₀ off the frozen weight. Here
the weight serves all adapters and stays as it is: the start is a frozen adapter of its own, which
is subtracted as long as the other one learns, W x - s·B₀·A₀ x + s·B·A x. PEFT works on a copy of
one layer's weight at a time. Knows PEFT's starts, the sites, and how a batch goes through a task;
does not know optimizers or checkpoints.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters_hub.backbone.backbone import Backbone, site_shape
from adapters_hub.backbone.quantised import keep_4bit_differentiable
from adapters_hub.backbone.sharding import whole
from adapters_hub.data.rows import Row
from adapters_hub.errors import SettingsError
from adapters_hub.library.blend import Blend
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Runtime
from adapters_hub.tasks.base import Example, Task
from adapters_hub.training.settings import TrainingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

_BATCHES = 16  # of the run, from which the starts that need data are computed
_MOST = 64  # forwards until EVA's components must have settled
_SUBTRACTED = {"pissa": 1, "olora": 1, "lora_ga": 2}
"""The starts that are subtracted, and how many times the rank a weight must have directions."""


def check_start(init: str | None, backbone: Backbone) -> None:
    """`SettingsError` for a start that is made from weights which are quantised."""
    if init in _SUBTRACTED and backbone.bits < 16:
        raise SettingsError(
            f"init={init!r} is computed from the weights, which have {backbone.bits} bits here; "
            "load the backbone at 16 or 32 bits, or choose eva or orthogonal"
        )
    if init == "lora_ga" or (init in _SUBTRACTED and backbone.offloaded):
        backbone.check_at_hand(f"read for init={init!r}")


@dataclass(frozen=True)
class _Batch:
    """Rows of one adapter in one of the run's batches; PEFT moves it to where it is."""

    examples: Sequence[Example]
    inputs: dict[str, Tensor]

    @property
    def mask(self) -> Tensor | None:
        """Which positions are no padding (rows, tokens)."""
        mask = self.inputs.get("attention_mask")
        return None if mask is None else mask.bool()

    def to(self, device: object) -> "_Batch":
        """Itself: it is there already."""
        return self


@dataclass(frozen=True)
class Beginning:
    """What adapters of a run begin with: called with an adapter's number and the fresh adapter."""

    model: Runtime
    task: Task
    examples: Sequence[Example]
    owners: Sequence[int] | np.ndarray
    batches: Sequence[Sequence[int]] | np.ndarray
    over: Callable[[Row], Blend]
    settings: TrainingSettings
    accelerator: "Accelerator"

    def __call__(self, number: int, adapter: Adapter) -> tuple[Adapter, Adapter | None]:
        """The adapter with the factors to begin with, and the one to subtract, if there is one.

        Every process computes it from the same rows. Raises `SettingsError` for a start that the
        weights or the rows do not allow.
        """
        init = self.settings.init
        if init is None or not adapter.factors:
            return adapter, None
        check_start(init, self.model.backbone)
        if init in _SUBTRACTED:
            self._check_rank(init, adapter)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.settings.seed)
            if init == "eva":
                return self._from_inputs(number, adapter), None
            gradients = self._gradients(number, adapter) if init == "lora_ga" else {}
            factors = {
                site: self._computed(site, adapter, gradients.get(site)) for site in adapter.factors
            }
        begun = replace(adapter, factors=factors)
        if init not in _SUBTRACTED:
            return begun, None
        info = replace(adapter.info, name=f"{adapter.name} (start)")  # as no stored one can be
        start = replace(begun, info=info, head={})
        return begun, start.map(lambda tensor: tensor.clone())

    def _check_rank(self, init: str, adapter: Adapter) -> None:
        for site, (a, _) in adapter.factors.items():
            most = min(site_shape(self.model.backbone.sites[site])) // _SUBTRACTED[init]
            if len(a) > most:
                raise SettingsError(
                    f"rank={len(a)}: init={init!r} takes directions of {site}'s weight, which has "
                    f"them for a rank of {most} at most"
                )

    # ── from a weight ────────────────────────────────────────────────────────────────────────

    def _computed(
        self, site: str, adapter: Adapter, gradient: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """PEFT's A and B for a copy of a site's weight, and its gradient where that is used."""
        from peft import LoraConfig
        from peft.tuners.lora.config import LoraGAConfig
        from peft.tuners.lora.layer import Linear

        module, rank = self.model.backbone.sites[site], len(adapter.factors[site][0])
        weight = whole(module.get_parameter("weight").detach())
        layer: Any = nn.Linear(*site_shape(module), bias=False, device="meta")
        weight = weight.t() if isinstance(module, Conv1D) else weight
        layer.weight = nn.Parameter(
            weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format),
            requires_grad=False,
        )
        config = LoraConfig(
            init_lora_weights=self.settings.init,
            lora_ga_config=LoraGAConfig() if gradient is not None else None,
        )
        if gradient is not None:
            layer._peft_loraga_grad = gradient
        alpha = adapter.scaling[site] * rank
        made = Linear(layer, "start", config=config, r=rank, lora_alpha=alpha)
        return made.lora_A["start"].weight.data, made.lora_B["start"].weight.data

    # ── from the run's first batches ─────────────────────────────────────────────────────────

    def _first(self, number: int) -> list[_Batch]:
        """The first of the run's batches in which the adapter has rows, and just those."""
        chosen: list[_Batch] = []
        for step, batch in enumerate(self.batches):
            examples = [self.examples[i] for i in batch if self.owners[i] == number]
            if examples and len(chosen) < _BATCHES:
                seed = self.settings.seed * 100_003 + step
                inputs = self.task.collate(examples, self.model.backbone, seed=seed)
                chosen.append(_Batch(examples, inputs))
        return chosen

    @contextmanager
    def _resident(self, adapter: Adapter) -> Iterator[None]:
        """The fresh adapter in the model, whose delta is zero and whose head the task needs."""
        self.model.add(adapter)
        try:
            yield
        finally:
            self.model.drop(adapter.name)

    def _loss(self, adapter: Adapter, batch: _Batch) -> Tensor:
        """The mean loss of a batch, as in training, over the frozen adapters of its rows."""
        rows = [row for example in batch.examples for row in self.task.rows(example.row)]
        alone = Blend(((adapter.name, 1.0),), exact=True)
        blends = [alone + self.over(row) for row in rows]
        heads = self.model.heads(blends) if self.task.needs_head() else []
        with self.model.bank.using(self.model.plan(blends)), self.accelerator.autocast():
            if self.task.couples:
                outputs = self.task.outputs(self.model, batch.inputs, heads)
                losses = self.task.coupled_loss(outputs, batch.examples, [0] * len(batch.examples))
            else:
                losses = self.task.loss(self.model, batch.inputs, heads)
        return losses.float().sum() / self.task.count(batch.inputs).sum()

    def _gradients(self, number: int, adapter: Adapter) -> dict[str, Tensor]:
        """The mean gradient by each site's weight (out, in), for LoRA-GA."""
        modules = [self.model.backbone.sites[site] for site in adapter.factors]
        weights = [module.get_parameter("weight") for module in modules]
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        batches = self._first(number)
        try:
            for weight in weights:
                weight.requires_grad_(True)
            with self._resident(adapter), torch.enable_grad():
                for batch in batches:
                    loss = self._loss(adapter, batch)
                    for total, of_batch in zip(
                        sums, torch.autograd.grad(loss, weights), strict=True
                    ):
                        total += of_batch
        finally:
            for weight in weights:
                weight.requires_grad_(False)
        return {
            site: (total.t() if isinstance(module, Conv1D) else total) / len(batches)
            for site, module, total in zip(adapter.factors, modules, sums, strict=True)
        }

    def _from_inputs(self, number: int, adapter: Adapter) -> Adapter:
        """EVA: A from the principal components of each site's inputs, ranks shared out among sites.

        A site that got none is left out. PEFT's own defaults.
        """
        from peft import EvaConfig, LoraConfig, get_eva_state_dict

        backbone, sites = self.model.backbone, {}
        paths = {id(module): path for path, module in backbone.model.named_modules()}
        for site in adapter.factors:
            sites[paths[id(backbone.sites[site])]] = site
        rank = max(len(a) for a, _ in adapter.factors.values())
        config = LoraConfig(
            r=rank, target_modules=set(sites), init_lora_weights="eva", eva_config=EvaConfig()
        )
        least = round(rank * config.eva_config.rho)
        forwards = 0

        def forward(_: nn.Module, batch: _Batch) -> None:
            nonlocal forwards
            forwards += 1
            if forwards > _MOST:
                raise SettingsError(
                    f"init='eva': the components have not settled after {_MOST} batches; take a "
                    "lower rank or a larger batch_size"
                )
            self._loss(adapter, batch)

        def inputs_of(x: tuple[Tensor, ...], mask: Tensor | None, site: str) -> Tensor:
            states = _unpadded(x[0], mask)
            if len(states) < least and forwards == 1:
                raise SettingsError(
                    f"init='eva' looks for {least} directions at a rank of {rank}, and {site} sees "
                    f"{len(states)} inputs a batch; take a lower rank or a larger batch_size"
                )
            return states

        with self._resident(adapter), _without_new_hooks(backbone.model):
            made = get_eva_state_dict(
                backbone.model,
                self._first(number),
                config,
                forward_fn=forward,
                prepare_model_inputs_fn=lambda batch, _: batch.mask,
                prepare_layer_inputs_fn=inputs_of,
                gather_distributed_inputs=False,
                show_progress_bar=False,
            )
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        scaling: dict[str, float] = {}
        for path, a in made.items():
            site, got = sites[path], len(a)
            if got:
                b = adapter.factors[site][1]
                factors[site] = a.to(b), b.new_zeros(len(b), got)
                # PEFT makes alpha grow with the rank
                more = math.sqrt(got / rank) if adapter.config.get("use_rslora") else 1.0
                scaling[site] = adapter.scaling[site] * more
        return replace(adapter, factors=factors, scaling=scaling)


def _unpadded(x: Tensor, mask: Tensor | None) -> Tensor:
    """The inputs (n, in) of a site's x (…, in), without padding where x is of rows and tokens."""
    if mask is not None and mask.shape == x.shape[:-1]:
        return x.detach()[mask]
    return x.detach().reshape(-1, x.shape[-1])


@contextmanager
def _without_new_hooks(model: nn.Module) -> Iterator[None]:
    """Leave a frozen model as it was, where PEFT may stop between adding and removing its hooks."""
    before = {module: set(module._forward_hooks) for module in model.modules()}
    try:
        yield
    finally:
        for module, hooks in before.items():
            for number in set(module._forward_hooks) - hooks:
                del module._forward_hooks[number]
        keep_4bit_differentiable(model)  # PEFT calls `eval`
