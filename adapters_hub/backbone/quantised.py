"""What is of 8 and 4 bits: bitsandbytes' layers, and the embeddings beside them.

Knows bitsandbytes' layers and torch modules; does not know architectures or adapters.
Quantisation leaves embeddings and the output layer whole, and in a small model with a large
vocabulary they are most of what is left: they are stored in 16 bits and used in 32. Float16 keeps
11 bits of each number, where the linear layers beside them keep 8.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from adapters_hub.errors import BackboneError

BITS = (32, 16, 8, 4)
_WHOLE = {32: torch.float32, 16: torch.bfloat16}  # not quantised
_CHUNK = 8192  # tokens of the vocabulary that are widened at a time


class NarrowEmbedding(nn.Embedding):
    """An embedding whose weight is float16 and whose output is float32."""

    def forward(self, input: Tensor) -> Tensor:
        """(…,) → (…, width)."""
        return super().forward(input).float()


class NarrowLinear(nn.Linear):
    """A linear layer whose weight is float16; products and sums are float32."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) → (…, out), a part of the outputs at a time."""
        parts = [functional.linear(input, part.float()) for part in self.weight.split(_CHUNK)]
        out = torch.cat(parts, dim=-1)
        return out if self.bias is None else out + self.bias


def narrow_embeddings(model: PreTrainedModel) -> None:
    """Put the above in place of a model's float32 embeddings and output layer; ties stay ties."""
    head = model.get_output_embeddings()
    narrowed: dict[int, nn.Parameter] = {}
    made: dict[int, nn.Module] = {}
    for path, module in [*model.named_modules(remove_duplicate=False)]:
        whole = type(module) is nn.Embedding or (module is head and type(module) is nn.Linear)
        if not whole or module.weight.dtype != torch.float32:
            continue
        weight = narrowed.get(id(module.weight))
        if weight is None:
            half = module.weight.half()
            if not half.isfinite().all():
                continue  # beyond what float16 can hold
            weight = narrowed[id(module.weight)] = nn.Parameter(half, requires_grad=False)
        if id(module) not in made:
            narrow: nn.Module
            if type(module) is nn.Embedding:
                size = module.num_embeddings, module.embedding_dim
                narrow = NarrowEmbedding(*size, padding_idx=module.padding_idx, device="meta")
            else:
                narrow = NarrowLinear(module.in_features, module.out_features, False, device="meta")
                narrow.bias = module.bias
            narrow.weight = weight
            made[id(module)] = narrow.train(module.training)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, made[id(module)])


def compute_dtype(bits: int, device: torch.device) -> torch.dtype:
    """The precision of what flows between the layers, and of weights that are not quantised."""
    if bits in _WHOLE:
        return _WHOLE[bits]
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def stored_bits(name: str, config: PreTrainedConfig, wanted: int | None) -> int | None:
    """The bits of a checkpoint that bitsandbytes already quantised; None of one that is whole.

    Raises `BackboneError` for other quantised checkpoints (GPTQ, AWQ, fp8, …), whose layers are
    none that adapters can act on, and where other bits are ``wanted``.
    """
    stored = getattr(config, "quantization_config", None)
    stored = stored or getattr(config, "compression_config", None)
    if not stored:
        return None
    settings: dict[str, object] = stored if isinstance(stored, dict) else stored.to_dict()
    method = settings.get("quant_method")
    method = str(getattr(method, "value", method) or "an unnamed method")
    # Files of the first versions have no method, only what bitsandbytes was asked for.
    bits = 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None
    if bits is None or method not in ("bitsandbytes", "an unnamed method"):
        raise BackboneError(
            f"{name}: its weights are stored quantised by {method}, whose layers adapters cannot "
            "act on here; take the checkpoint it was made from, with bits=4 or bits=8 to make it "
            "as small"
        )
    if wanted not in (None, bits):
        raise BackboneError(
            f"{name}: its weights are stored in {bits} bits, so bits={wanted} is not to be had; "
            f"leave bits out, or take the checkpoint it was made from for bits={wanted}"
        )
    return bits


def check_not_repacked(name: str, model: nn.Module) -> None:
    """Raise `BackboneError` for 4-bit layers that bitsandbytes repacked: see the function below.

    That rounds the scales of their weights, and the way back that bitsandbytes has keeps this.
    """
    for path, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise BackboneError(
                f"{name}: the model already ran on the CPU in eval mode, where bitsandbytes "
                f"repacked its 4-bit weights ({path} is the first) for a kernel that drops every "
                "gradient; load the model again and give it here before it runs"
            )


def keep_4bit_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes' 4-bit layers out of eval mode on the CPU.

    In eval mode they repack their weight for a kernel that has no backward and drops the gradient
    with no more than a warning. The layer has no dropout, so nothing else changes.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True
