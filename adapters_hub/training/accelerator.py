"""The accelerator of a run and its threads, as its settings and its launcher say.

Knows `accelerate` and the environment that a launcher leaves; does not know what is trained.
"""

import logging
import os
from typing import TYPE_CHECKING

import torch

from adapters_hub.errors import SettingsError
from adapters_hub.training.settings import TrainingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


def make_accelerator(settings: TrainingSettings) -> "Accelerator":
    """The accelerator as settings and launcher say; `SettingsError` where they cannot both have it.

    Several processes on a machine without an accelerator are CPU processes, also without ``--cpu``:
    accelerate would otherwise take each of them for the only one.
    """
    from accelerate import Accelerator

    try:
        accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            cpu=settings.cpu or not torch.accelerator.is_available(),
            log_with=list(settings.tracker) or None,
            project_dir=settings.run_folder,
        )
    except (ValueError, ImportError) as error:  # such as fp8 without its library
        raise SettingsError(f"accelerate: {error}") from None
    check_accelerator(accelerator)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise SettingsError(
            "mixed_precision='fp16': accelerate leaves it out on a CPU; choose bf16, or no"
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise SettingsError(
            f"{started} processes were started, and accelerate sees {accelerator.num_processes} on "
            f"{accelerator.device.type}: start one, or give the recipe --cpu"
        )
    if started == 1 and "MASTER_PORT" in os.environ and "ACCELERATE_USE_CPU" in os.environ:
        log.warning(
            "accelerate launch --cpu starts one process, whatever --num_processes says; for two: "
            "accelerate launch --multi_gpu --num_processes 2 RECIPE … --cpu, or "
            "adapters-hub train … --processes 2"
        )
    return accelerator


def check_accelerator(accelerator: "Accelerator") -> None:
    """Raise `SettingsError` for an accelerator that would change what a step is."""
    if (pieces := accelerator.gradient_accumulation_steps) != 1:
        raise SettingsError(
            f"accelerate was asked for gradient_accumulation_steps={pieces} and would divide the "
            f"gradient by it; leave that at 1. --accumulation {pieces} takes each process's share "
            "of batch_size in pieces, and the step stays the same"
        )


def set_threads(threads: int) -> None:
    """Use so many CPU threads; 0 gives one process all cores, though its launcher says one."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if threads or (alone and os.environ.get("OMP_NUM_THREADS") == "1"):
        torch.set_num_threads(threads or os.cpu_count() or 1)
