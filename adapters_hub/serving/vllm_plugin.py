"""vLLM's plugin: a request's ``model`` may be any blend of the library, such as "sw + 0.5*health".

vLLM calls `register` in each of its processes (entry point group ``vllm.general_plugins``). Knows
vLLM's resolver of LoRA adapters. The library is ``$ADAPTERS_HUB_LIBRARY``.
"""

import asyncio
import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from adapters_hub.errors import AdaptersHubError, UnsupportedAdapterError
from adapters_hub.sharing.limits import MAX_LORA_RANKS, rank_limit

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

    from adapters_hub.serving.sums import Sums

NAME = "adapters_hub"
log = logging.getLogger(f"vllm.{NAME}")  # so that vLLM's handler and format are taken


def register() -> None:
    """Give vLLM a resolver of blends. Cheap: torch and the library come in with a request."""
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    class BlendResolver(LoRAResolver):
        """Turns the name of a blend into the adapter that is its exact sum."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> "LoRARequest | None":
            """The adapter of a name; None, which is vLLM's 404, where it is no blend."""
            return await asyncio.to_thread(request_for, base_model_name, lora_name)

    LoRAResolverRegistry.register_resolver(NAME, BlendResolver())


def request_for(base_model_name: str, lora_name: str) -> "LoRARequest | None":
    """vLLM's request for a blend, and None, with the reason logged, for what is none.

    Its name is the one asked for, ``@`` and 12 digits of the content's hash: vLLM keys its prefix
    cache by the name, and takes two adapters of one name in a batch for one.
    """  # noqa: D403
    from vllm.lora.request import LoRARequest

    try:
        made = sums_for(base_model_name)(lora_name)
        limit = rank_limit(made.rank)
        if limit is None:
            raise UnsupportedAdapterError(
                f"its rank {made.rank} is above {MAX_LORA_RANKS[-1]}, the most that vLLM loads; "
                "cut it: adapters-hub compose --method svd"
            )
    except AdaptersHubError as error:
        log.warning("model %r: %s", lora_name, error)
        return None
    log.info(
        "model %r is %s (rank %d, for which --max-lora-rank must be %d or more)",
        lora_name, made.digest, made.rank, limit,
    )  # fmt: skip
    return LoRARequest(
        lora_name=f"{lora_name}@{made.digest[:12]}",
        lora_int_id=made.number,  # some versions of vLLM give a number of their own
        lora_path=str(made.folder.absolute()),
    )


@cache
def sums_for(base_model_name: str) -> "Sums":
    """The sums of the library's adapters for a backbone, by its folder or hub id."""
    from adapters_hub.library.checks import local_fingerprint
    from adapters_hub.library.library import Library
    from adapters_hub.serving.sums import Sums, default_cache

    folder = _checkpoint(base_model_name)
    if folder is None:
        log.warning(
            "%s: no such folder, and no such model in the Hub's cache, so adapters are not "
            "checked to be for it", base_model_name,
        )  # fmt: skip
    return Sums(Library(), default_cache(), local_fingerprint(str(folder) if folder else None))


def _checkpoint(name: str) -> Path | None:
    """The folder of a backbone that vLLM has loaded."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
