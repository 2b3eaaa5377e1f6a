"""PEFT's folder: for PEFT itself, and within the limits of servers that read it.

Knows PEFT's files by `Adapter`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from adapters_hub.errors import SettingsError
from adapters_hub.inference.export import merge, without_blend
from adapters_hub.runtime.adapter import Adapter
from adapters_hub.sharing.checks import Check, check_outputs
from adapters_hub.sharing.engine import Engine, Source
from adapters_hub.sharing.limits import MAX_LORA_RANKS, rank_limit


class Peft(Engine):
    """A PEFT folder, as the library stores adapters."""

    name = "peft"

    def write(self, source: Source, folder: Path) -> str:
        stored(source.composed, source.dtype).save(folder)
        return (
            f"PeftModel.from_pretrained(AutoModel….from_pretrained({source.base_name!r}), FOLDER)"
        )

    def check(self, source: Source, folder: Path, texts: Sequence[str]) -> Check:
        """By PEFT, on a copy of the backbone."""
        import peft

        model = source.model
        loaded = peft.PeftModel.from_pretrained(without_blend(model, source.blend), str(folder))
        return check_outputs(
            f"PEFT {peft.__version__}",
            loaded.eval(),
            merge(model, source.blend),
            without_blend(model, source.blend),
            model.backbone.tokenizer,
            texts,
            source.dtype,
        )


class Vllm(Peft):
    """A PEFT folder of one rank and scaling 1, without a head."""

    name = "vllm"
    _flags = "vllm serve {base} --enable-lora --max-lora-rank {limit} --lora-modules {name}=FOLDER"

    def write(self, source: Source, folder: Path) -> str:
        adapter = source.adapter(self.name)
        rank = len(next(iter(adapter.factors.values()))[0])
        limit = rank_limit(rank)
        if limit is None:
            raise SettingsError(
                f"--for {self.name}: rank {rank} is above {MAX_LORA_RANKS[-1]}, the largest that "
                f"it loads; cut it with --rank {MAX_LORA_RANKS[-1]} or less"
            )
        stored(adapter, source.dtype).save(folder)
        return self._flags.format(base=source.base_name, limit=limit, name=adapter.name)


class Sglang(Vllm):
    """As for vLLM."""

    name = "sglang"
    _flags = (
        "python -m sglang.launch_server --model-path {base} --enable-lora --max-lora-rank {limit} "
        "--lora-paths {name}=FOLDER"
    )


def stored(adapter: Adapter, dtype: str) -> Adapter:
    """An adapter whose tensors have a number format, by its name in torch."""
    number: torch.dtype = getattr(torch, dtype)
    return adapter.map(lambda tensor: tensor.to(number))
