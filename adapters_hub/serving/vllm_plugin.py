"""vLLM's plugin: a request's ``model`` may be any blend of the library, such as "sw + 0.5*health".

vLLM calls `register` when it starts (entry point group ``vllm.general_plugins``). Knows vLLM's
resolver of LoRA adapters. The library is ``$ADAPTERS_HUB_LIBRARY``.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from adapters_hub.errors import AdaptersHubError
from adapters_hub.library.checks import local_fingerprint
from adapters_hub.library.library import Library
from adapters_hub.serving.sums import Sum, Sums, default_cache

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

log = logging.getLogger(__name__)
NAME = "adapters_hub"


def register() -> None:
    """Give vLLM a resolver of blends."""
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    class BlendResolver(LoRAResolver):
        """Turns the name of a blend into the adapter that is its exact sum."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> "LoRARequest | None":
            """The adapter of a name; None, which is vLLM's 404, where it is no blend."""
            return await asyncio.to_thread(request_for, base_model_name, lora_name)

    LoRAResolverRegistry.register_resolver(NAME, BlendResolver())


def request_for(base_model_name: str, lora_name: str) -> "LoRARequest | None":
    """VLLM's request for a blend, and None, with the reason logged, for what is none."""
    from vllm.lora.request import LoRARequest

    try:
        made = sum_for(base_model_name, lora_name)
    except AdaptersHubError as error:
        log.warning("model %r: %s", lora_name, error)
        return None
    return LoRARequest(
        lora_name=lora_name, lora_int_id=made.number, lora_path=str(made.folder.absolute())
    )


def sum_for(base_model_name: str, lora_name: str) -> Sum:
    """The sum that a name means on a backbone; raises as `Sums`."""
    return Sums(Library(), default_cache(), local_fingerprint(base_model_name))(lora_name)
