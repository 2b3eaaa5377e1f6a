"""Slots of a fixed number and size, for compiled forwards.

Knows slots and sites; does not know names, files or tasks. ``torch.compile`` wants tensors that
stay where they are: so a compiled forward sees room for ``slots`` adapters of at most ``rank``, and
M (rows, 1, slots · rank), which is zero where a row does not use what is there. Changing adapters
is copying numbers, never compiling again. The price: every product runs over all of the room.
"""

import threading
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from adapters_hub.errors import BackboneError
from adapters_hub.runtime.plan import Plan, Slot


class CompiledSlots:
    """Room for adapters at every site, and the M of the plan that is followed now.

    ``shapes``: site → (in, out). One call at a time: other threads wait between `enter` and
    `leave`.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        slots: int,
        rank: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if slots < 1 or rank < 1:
            raise BackboneError(
                f"{slots} slots of rank {rank} hold nothing: both must be at least 1"
            )
        self.slots, self.rank = slots, rank
        self._lock = threading.RLock()
        self.mask: Tensor | None = None
        self._places: list[Slot | None] = [None] * slots
        self._order = list(range(slots))  # the least recently used first
        self._a, self._b = {}, {}
        for site, (fan_in, fan_out) in shapes.items():
            self._a[site] = torch.zeros(slots * rank, fan_in, device=device, dtype=dtype)
            self._b[site] = torch.zeros(slots * rank, fan_out, device=device, dtype=dtype)

    def enter(self, plan: Plan | None) -> None:
        """Show a plan until `leave`, and to nobody else."""
        self._lock.acquire()
        try:
            self.show(plan)
        except BaseException:
            self._lock.release()
            raise

    def leave(self, outer: Plan | None) -> None:
        """Show again what was shown before."""
        try:
            self.show(outer)
        finally:
            self._lock.release()

    def show(self, plan: Plan | None) -> None:
        """Bring a plan's adapters in and set M for its rows; None is bare.

        Raises `BackboneError` for too many adapters, too great a rank, or one that is trained.
        """
        if plan is None:
            self.mask = None
            return
        if len(plan.atoms) > self.slots:
            raise BackboneError(
                f"{len(plan.atoms)} adapters in one batch, and the model was compiled for "
                f"{self.slots}: compile(slots={len(plan.atoms)})"
            )
        for atom in plan.atoms:
            self._check(atom)
        places = [self._place(atom, plan.atoms) for atom in plan.atoms]
        blends, width = len(plan.weights), self.slots * self.rank
        with torch.inference_mode(False), torch.no_grad():
            table = torch.zeros(blends, self.slots, self.rank)
            table[:, places] = plan.weights[..., None]
            rows = table if plan.index is None else table[plan.index.flatten()]
            some = next(iter(self._a.values()))
            self.mask = rows.view(-1, 1, width).to(some.device, some.dtype)

    def add(self, site: str, x: Tensor, y: Tensor) -> Tensor:
        """The site's output y (…, out) for its input x (…, in), with what is shown added."""
        if self.mask is None:
            return y
        hidden = functional.linear(x, self._a[site].to(x.dtype))
        apart = hidden.view(self.mask.shape[0], -1, hidden.shape[-1])
        mask = self.mask.to(x.dtype)
        hidden = torch.where(mask == 0, torch.zeros_like(mask), apart * mask).view(hidden.shape)
        return y + torch.matmul(hidden, self._b[site].to(x.dtype)).to(y.dtype)

    def _check(self, atom: Slot) -> None:
        if atom.trained:
            raise BackboneError("a compiled model does not train: load the backbone once more")
        if outside := atom.factors.keys() - self._a.keys():
            raise BackboneError(
                f"an adapter acts on {min(outside)}, and a compiled model has none on routers and "
                "experts: load the backbone once more and leave it uncompiled"
            )
        rank = max((len(a) for a, _ in atom.factors.values()), default=0)
        if rank > self.rank:
            raise BackboneError(
                f"an adapter of rank {rank}, and the model was compiled for {self.rank}: "
                f"compile(rank={rank})"
            )

    def _place(self, atom: Slot, needed: tuple[Slot, ...]) -> int:
        """Where an adapter is; the least recently used one that is not needed makes room."""
        if atom in self._places:
            place = self._places.index(atom)
        else:
            place = next(n for n in self._order if self._places[n] not in needed)
            self._fill(place, atom)
        self._order.remove(place)
        self._order.append(place)
        return place

    def _fill(self, place: int, atom: Slot) -> None:
        self._places[place] = None  # should a copy fail
        start, end = place * self.rank, (place + 1) * self.rank
        with torch.inference_mode(False), torch.no_grad():
            for site, room in self._a.items():
                a_rows, b_rows = room[start:end], self._b[site][start:end]
                a_rows.zero_()
                b_rows.zero_()
                if site in atom.factors:
                    a, b = atom.factors[site]
                    a_rows[: len(a)] = a
                    b_rows[: len(a)] = b.t() * atom.scaling[site]
        self._places[place] = atom
