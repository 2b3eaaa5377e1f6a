"""Pretrain the starter backbone: a small Qwen3-shaped causal language model.

    accelerate launch recipes/starter/pretrain.py \
        --data BUILD_FOLDER --tokenizer BUILD_FOLDER/tokenizer --out BUILD_FOLDER/run --minutes 55

Runs on CPU or GPU (bf16 there; on a CPU with --precision bf16, which halves the time of a step
where the processor multiplies bfloat16 itself). Started again with the same --out it goes on where
it was: every batch is a function of the seed and the step, and the schedule follows the training
time spent so far, so the learning rate reaches zero after --minutes whatever the speed of the
machine. --start takes the first weights from a model folder, for a second round with another --out
and --seed.

A document is `<s> <xx> text </s>` or `<s> text </s>`, half of the time each, or a pair of
translations `<s> <en> sentence <de> sentence </s>` in either direction.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from checkpoint import restore, save
from mixture import Mixture
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the result of a run."""

    data: str
    tokenizer: str
    out: str
    minutes: float = 55.0
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 768
    length: int = 160
    batch: int = 32
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 60
    decay: float = 0.5
    alpha: float = 0.4
    parallel: float = 0.22
    seed: int = 0
    save_minutes: float = 3.0
    compile: int = 0
    precision: str = "no"
    start: str = ""

    @classmethod
    def from_command_line(cls) -> Settings:
        """Make one flag of every field."""
        parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
        kinds = {"str": str, "int": int, "float": float}
        for field in dataclasses.fields(cls):
            required = field.default is dataclasses.MISSING
            parser.add_argument(
                "--" + field.name.replace("_", "-"),
                type=kinds[field.type],
                required=required,
                default=None if required else field.default,
            )
        return cls(**vars(parser.parse_args()))


def build_model(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """Make a fresh model, or the one to start from."""
    if settings.start:
        return Qwen3ForCausalLM.from_pretrained(settings.start, dtype=torch.float32)
    torch.manual_seed(settings.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config)


def build_optimizers(settings: Settings, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    if not settings.muon_rate:
        others, matrices = matrices + others, []
    adam = torch.optim.AdamW(others, settings.adam_rate, betas=(0.9, 0.95), weight_decay=0.01)
    if not matrices:
        return [adam]
    muon = torch.optim.Muon(
        matrices, settings.muon_rate, momentum=0.95, weight_decay=settings.weight_decay
    )
    return [muon, adam]


def rate(settings: Settings, step: int, minutes: float) -> float:
    """Return the factor on the learning rates: warm up, hold, then fall to zero."""
    left = max(0.0, 1.0 - minutes / settings.minutes)
    return min(1.0, (step + 1) / settings.warmup_steps, left / settings.decay)


def language_loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token loss of a packed batch."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def main() -> None:
    """Train until the time is spent."""
    settings = Settings.from_command_line()
    out = Path(settings.out)
    gpu = torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="bf16" if gpu else settings.precision, cpu=not gpu)
    tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer)
    with accelerator.main_process_first():  # the others read what the first one tokenized
        train = Mixture(settings, tokenizer, "train")
        dev = Mixture(settings, tokenizer, "dev")
    held_out = [dev.batch(index).to(accelerator.device) for index in range(3)]
    plain = build_model(settings, tokenizer).to(accelerator.device)
    optimizers = build_optimizers(settings, plain)
    state = restore(out, plain, optimizers)
    # Not from the optimizers: those restored carry a decayed rate.
    bases = [settings.muon_rate, settings.adam_rate][-len(optimizers) :]
    model = accelerator.prepare(plain)
    # About a fifth faster on a CPU, but it needs a C++ compiler.
    loss_of = torch.compile(language_loss) if settings.compile else language_loss
    step, spent, curve = state["step"], state["minutes"], state["curve"]
    begun, saved, mean, count = time.monotonic() - spent * 60, spent, 0.0, 0
    tokens = settings.batch * settings.length * accelerator.num_processes
    while spent < settings.minutes:
        factor = rate(settings, step, spent)
        for optimizer, base in zip(optimizers, bases, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
        batch = train.batch(step, accelerator.process_index).to(accelerator.device)
        loss = loss_of(model, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        mean, count = mean + loss.item(), count + 1
        # All processes must agree on when to stop, so the slowest one's clock counts.
        clock = torch.tensor([(time.monotonic() - begun) / 60], device=accelerator.device)
        spent = accelerator.gather(clock).max().item()
        if spent - saved >= settings.save_minutes or spent >= settings.minutes:
            with torch.inference_mode():
                dev_loss = sum(language_loss(model, part).item() for part in held_out) / 3
            curve.append({"step": step, "minutes": round(spent, 2), "tokens": step * tokens,
                          "loss": round(mean / count, 4), "dev_loss": round(dev_loss, 4),
                          "rate": round(factor, 4)})  # fmt: skip
            accelerator.print(curve[-1], flush=True)
            mean, count, saved = 0.0, 0, spent
            if accelerator.is_main_process:
                state = {"step": step, "minutes": spent, "curve": curve}
                state["settings"] = dataclasses.asdict(settings)
                save(out, accelerator.unwrap_model(model), optimizers, state)
                (out / "curve.json").write_text(json.dumps(curve, indent=1) + "\n")
    accelerator.end_training()


if __name__ == "__main__":
    main()
