"""The squared distance of the adapted weights, each input feature by how strong it is."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adapters_hub.backbone.backbone import Backbone
from adapters_hub.data.batches import by_length
from adapters_hub.errors import SettingsError
from adapters_hub.library.atomic import atomic_write
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.runtime.core import Heads, Runtime
from adapters_hub.tasks.base import Example
from adapters_hub.tasks.pooling import hidden_states
from adapters_hub.tasks.reader import reader
from adapters_hub.training.checkpoint import Trainee
from adapters_hub.training.piece import Piece
from adapters_hub.training.regularisers.base import OfFactors, Setup
from adapters_hub.training.regularisers.factors import deltas

log = logging.getLogger(__name__)

_FILE = "fisher.safetensors"
_FACTS = "facts"
_MOST, _AT_ONCE = 256, 16  # examples that are looked at, and go through the model together

Moments = dict[str, Tensor]
"""Site → the mean of x_i² (in,) of its input, float32."""


class Fisher(OfFactors):
    """Σ over sites and input features i of E[x_i²] · ‖ΔW_:,i‖² = tr(B·A·D·Aᵀ·Bᵀ), D = diag E[x_i²].

    EWC (arXiv:1612.00796, eq. 3) weighs each weight's squared change by its diagonal Fisher
    information, E[(∂ log p / ∂W_oi)²] = E[g_o² x_i²], with g the gradient at the site's output.
    Here g_o² is left out: all outputs of all sites count alike, and nothing is differentiated. What
    is left is, where input features are uncorrelated, just E‖ΔW·x‖², the expected squared change of
    the site's output; where they are not, what it leaves out are the terms E[x_i x_j], i ≠ j.
    Layers with larger inputs weigh more. As in `l2` it is a sum over sites, not a mean.

    E[x_i²] is over the tokens of 256 texts at most, seen by the backbone with the frozen adapters
    below: those of ``regularise_data``, else train rows of the adapter, by which the model is held
    on its task's texts alone. It is computed before the first step, and kept in the run's folder.

    For every task and backbone; not for an adapter that is only a head, nor for one of routers and
    experts, whose input is a shuffle of tokens.
    """

    name: ClassVar[str] = "fisher"
    reads_text: ClassVar[bool] = True

    @classmethod
    def check_adapter(cls, adapter: Adapter, backbone: Backbone) -> None:
        super().check_adapter(adapter, backbone)
        if inside := sorted(adapter.factors.keys() - backbone.sites.keys()):
            raise SettingsError(
                f"regularise: {cls.name} needs what a layer gets, and {inside[0]} of "
                f"{adapter.name!r} is a matrix of a router or of experts: leave them out "
                "(--parameters), or take l2"
            )

    def prepare(self, setup: Setup) -> None:
        self._moments: list[Moments] = []
        chosen = [_chosen(setup, number) for number in range(len(setup.trainees))]
        facts = _facts(setup, chosen)
        path = None if setup.folder is None else setup.folder / _FILE
        kept = None if path is None else _read(path, facts)
        if kept is None:
            kept = [_measured(setup, number, examples) for number, examples in enumerate(chosen)]
            if path is not None and setup.writes:
                _write(path, facts, kept)
        device = setup.model.backbone.device
        for trainee, moments in zip(setup.trainees, kept, strict=True):
            if unseen := sorted(trainee.adapter.factors.keys() - moments.keys()):
                raise SettingsError(
                    f"regularise: {self.name}: {unseen[0]} of {trainee.adapter.name!r} sees "
                    "nothing of these texts, such as an encoder-decoder's decoder, which reads "
                    "targets: leave regularise_data out, or leave out such layers (--targets)"
                )
            self._moments.append({site: moment.to(device) for site, moment in moments.items()})

    def value(self, number: int, trainee: Trainee) -> Tensor:
        moments = self._moments[number]
        return torch.stack(
            [((a * moments[site] @ a.t()) * (b.t() @ b)).sum() for site, a, b in deltas(trainee)]
        ).sum()


def _chosen(setup: Setup, number: int) -> list[Example]:
    """The examples whose inputs count for an adapter."""
    if setup.text is not None:
        whole: Sequence[Example] = setup.text.whole
        places = np.arange(len(whole))
    else:
        whole, places = setup.examples, np.flatnonzero(np.asarray(setup.owners) == number)
    if len(places) > _MOST:
        draw = np.random.default_rng(setup.settings.seed)
        places = np.sort(draw.choice(places, _MOST, replace=False))
    return [whole[int(place)] for place in places]


def _measured(setup: Setup, number: int, examples: Sequence[Example]) -> Moments:
    """The moments of an adapter's sites, without the adapter."""
    model, task, text = setup.model, setup.task, setup.text
    modules = {site: model.backbone.sites[site] for site in setup.trainees[number].adapter.factors}

    _ = model.splits_head  # which a probe tells, whose inputs must not be seen

    def of_task(model: Runtime, inputs: dict[str, Tensor], heads: Heads) -> None:
        see = task.outputs if task.couples else task.read if task.compares else task.loss
        see(model, inputs, heads)

    def of_text(model: Runtime, inputs: dict[str, Tensor], _: Heads) -> None:
        hidden_states(model.backbone, inputs)

    with torch.no_grad(), torch.random.fork_rng(), _watched(model.backbone, modules) as sums:
        for places in by_length([len(example.input_ids) for example in examples], _AT_ONCE):
            some, owners = [examples[place] for place in places], torch.tensor([number])
            collated = task.collate(some, model.backbone) if text is None else text.plain(some)
            piece = Piece(places, some, collated, owners.expand(len(some)))
            if text is None:
                setup.forward(of_task, piece, reference=True)
            else:
                setup.forward(of_text, piece, task=text.task, reference=True)
    return {site: (total / count).float().cpu() for site, (total, count) in sums.items()}


@contextmanager
def _watched(
    backbone: Backbone, modules: Mapping[str, nn.Module]
) -> Iterator[dict[str, tuple[Tensor, int]]]:
    """The sum of x_i² (in,) and the number of inputs of each module called inside the block.

    Padding does not count, as far as the body was told which tokens it is.
    """
    sums: dict[str, tuple[Tensor, int]] = {}
    mask: list[Tensor | None] = [None]

    def entered(body: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask[0] = named.get("attention_mask")

    def noting(site: str) -> Any:
        def note(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            x: Tensor = (*inputs, *named.values())[0].detach()
            if mask[0] is not None and mask[0].shape == x.shape[:-1]:
                x = x[mask[0].bool()]
            squares = x.reshape(-1, x.shape[-1]).float().square()
            total, count = sums.get(site, (squares.new_zeros(()), 0))
            sums[site] = total + squares.sum(0), count + len(squares)

        return note

    bodies = dict.fromkeys((backbone.base, reader(backbone)))
    handles = [body.register_forward_pre_hook(entered, with_kwargs=True) for body in bodies]
    handles += [
        module.register_forward_pre_hook(noting(site), with_kwargs=True)
        for site, module in modules.items()
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _facts(setup: Setup, chosen: Sequence[Sequence[Example]]) -> str:
    """What the moments hang on, as a digest: the texts, the backbone, and what is below."""
    digest = hashlib.sha256(repr((setup.model.backbone.fingerprint, setup.task)).encode())
    task = setup.task if setup.text is None else setup.text.task
    for trainee, examples in zip(setup.trainees, chosen, strict=True):
        digest.update(json.dumps([trainee.adapter.name, *sorted(trainee.adapter.factors)]).encode())
        for example in examples:
            digest.update(np.asarray(example.input_ids, dtype=np.int64).tobytes())
            for row in task.rows(example.row):
                weights = setup.over(row).weights
                hashes = [setup.model.resident(name).info.hash for name, _ in weights]
                digest.update(repr((weights, hashes)).encode())
    return digest.hexdigest()


def _read(path: Path, facts: str) -> list[Moments] | None:
    """What an earlier start of the run kept, if it is of the same texts and backbone."""
    from safetensors.torch import load_file

    try:
        with safe_open(path, "pt") as file:
            known = (file.metadata() or {}).get(_FACTS)
        tensors = load_file(path) if known == facts else {}
    except (OSError, SafetensorError):
        return None
    if not tensors:
        return None
    moments: dict[int, Moments] = {}
    for key, tensor in tensors.items():
        number, _, site = key.partition("/")
        moments.setdefault(int(number), {})[site] = tensor
    log.info("the moments of %s are used again", path)
    return [moments[number] for number in range(len(moments))]


def _write(path: Path, facts: str, moments: Sequence[Moments]) -> None:
    from safetensors.torch import save

    tensors = {
        f"{number}/{site}": tensor
        for number, of_adapter in enumerate(moments)
        for site, tensor in of_adapter.items()
    }
    with atomic_write(path) as file:
        file.write(save(tensors, {_FACTS: facts}))


METHOD = Fisher
