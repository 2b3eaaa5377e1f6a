"""Training over a sharded backbone: what accelerate was asked for, and each process's share.

Knows accelerate's FSDP configuration; how weights are cut is the backbone's. Adapters are small, so
every process has them whole, and their gradients are summed as without FSDP.
"""

import os
from typing import TYPE_CHECKING, Any

from adapters_hub.backbone.sharding import Shards, shard
from adapters_hub.data.batches import share
from adapters_hub.errors import SettingsError
from adapters_hub.runtime.core import Runtime
from adapters_hub.training.settings import TrainingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


def wants_shards(accelerator: "Accelerator") -> bool:
    """Whether accelerate was asked for FSDP2 on several processes.

    Raises `SettingsError` for what of its configuration cannot be had here.
    """
    plugin = _plugin(accelerator)
    if plugin is None:
        return False
    if plugin.fsdp_version != 2:
        raise SettingsError(
            f"accelerate was asked for FSDP {plugin.fsdp_version}, which wraps a model in another; "
            "take FSDP2: accelerate launch --use_fsdp --fsdp_version 2, or fsdp_version: 2 in its "
            "configuration"
        )
    from torch.distributed.fsdp import CPUOffloadPolicy

    refused = {
        "fsdp_offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing": bool(plugin.activation_checkpointing),
        "fsdp_ignored_modules": plugin.ignored_modules is not None,
    }
    if asked := [name for name, is_asked in refused.items() if is_asked]:
        raise SettingsError(
            f"accelerate was asked for {', '.join(asked)}, which training over a frozen backbone "
            "does not have; leave it out (--gradient-checkpointing recomputes activations)"
        )
    return accelerator.num_processes > 1


def shard_model(model: Runtime, accelerator: "Accelerator", settings: TrainingSettings) -> str:
    """Shard a model's backbone, if accelerate was asked to; says what is held here, else nothing.

    Raises `SettingsError` and `BackboneError` for what cannot be sharded.
    """
    if not wants_shards(accelerator):
        return ""
    _check_settings(settings)
    from torch.distributed.device_mesh import init_device_mesh

    backbone, plugin = model.backbone, _plugin(accelerator)
    if model.bank.compiled_slots is not None:
        raise SettingsError("a compiled model cannot be sharded; leave out compile, or --use_fsdp")
    if backbone.shards is None:
        _ = model.splits_head  # a probe, which may fail half-way: not between processes
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        shard(
            backbone,
            mesh,
            layers=plugin.transformer_cls_names_to_wrap or (),
            reshard_after_forward=plugin.reshard_after_forward,
        )
        model.residents.follow_backbone()
    assert backbone.shards is not None
    parts = [*backbone.shards.local_parameters()]
    local, whole = sum(part.numel() for part, _ in parts), sum(numbers for _, numbers in parts)
    size = sum(part.nbytes for part, _ in parts) / 2**20
    return f"sharded (FSDP2): this process holds {local:,} of {whole:,} weights, {size:,.1f} MiB"


def _check_settings(settings: TrainingSettings) -> None:
    """Refuse what would need other forwards in one process than in another."""
    refused = [f"regularise {name}" for name in settings.regularise if name != "l2"]
    refused += ["joint_weights"] if settings.joint_weights else []
    refused += ["augment mixup"] if "mixup" in settings.augment else []
    if refused:
        raise SettingsError(
            f"{', '.join(refused)}: not over a sharded backbone, where all processes must go "
            "through the model equally often; leave it out, or --use_fsdp"
        )


def shares(
    rows: int, accelerator: "Accelerator", settings: TrainingSettings, shards: Shards | None
) -> list[tuple[list[int], int]]:
    """A process's part of a batch of so many rows, in pieces, each with its weight, 1.

    With ``shards`` all processes have as many pieces: one that lacks some gets the first row again,
    with weight 0.
    """
    process, processes = accelerator.process_index, accelerator.num_processes
    pieces = [(p, 1) for p in share(range(rows), process, processes, settings.accumulation)]
    if shards is not None:
        most = len(share(range(rows), 0, processes, settings.accumulation))
        pieces += [([0], 0)] * (most - len(pieces))
    return pieces


def _plugin(accelerator: "Accelerator") -> Any:
    """Accelerate's FSDP configuration, None without one.

    On a CPU accelerate reads it and then leaves FSDP out (`AcceleratorState` takes it for devices
    alone), so it is read again.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    from accelerate import FullyShardedDataParallelPlugin

    return getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
