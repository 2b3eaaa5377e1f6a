"""What each regulariser costs: milliseconds a step beside the same step without any.

    python benchmarks/regularisers.py
    python benchmarks/regularisers.py --backbone my/model --task language-modeling --rows 8

One process, one adapter on random weights, unless a backbone is given; the ways take turns, a step
each, and each has its median over the turns. Rows are texts of one length. A step is that of the
training loop: collate, forward, backward, clip, AdamW.
"""

import argparse
import os
import statistics
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from report import report

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.metrics.tables import markdown
from adapters_hub.tasks import make_task
from adapters_hub.training import loop
from adapters_hub.training.settings import TrainingSettings

TEXT = "the room was clean and quiet staff rude slow never again lovely view near station"
WORDS = TEXT.split()
WAYS: dict[str, dict[str, object]] = {
    "none": {},
    "l2": {"regularise": {"l2": "1e-3"}},
    "fisher": {"regularise": {"fisher": "1e-3"}},
    "kl": {"regularise": {"kl": "0.1"}},
    "kl, generic text": {"regularise": {"kl": "0.1"}, "regularise_data": "text"},
    "dropout 0.1": {"dropout": 0.1},
    "rdrop": {"regularise": {"rdrop": "0.5"}, "dropout": 0.1},
    "joint dro": {"joint_weights": "dro"},
}


def random_encoder(folder: Path) -> str:
    """A BERT of 6 layers and width 256 with random weights, and a tokenizer of a few words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = {token: number for number, token in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", known["[CLS]"]), ("[SEP]", known["[SEP]"])]
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    config = transformers.BertConfig(
        vocab_size=30_000, hidden_size=256, num_hidden_layers=6, num_attention_heads=4,
        intermediate_size=1024, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Stepping:
    """A run that is stopped before each step and goes on when it is told to."""

    def __init__(
        self, model: ah.AdaptedModel, options: argparse.Namespace, folder: Path, way: str
    ) -> None:
        from accelerate import Accelerator

        made = dict(WAYS[way])
        if "regularise_data" in made:
            made["regularise_data"] = str(folder / "text.jsonl")
        rows = [
            Row(" ".join(WORDS[(n + k) % len(WORDS)] for k in range(options.words)),
                "ab"[n % 2], ("de", "en")[n % 2])
            for n in range(options.rows)
        ]  # fmt: skip
        heads = {"label_names": ("a", "b")} if options.task == "classification" else {}
        task = make_task(options.task, **heads)
        settings = TrainingSettings(task=options.task, steps=1, cpu=True, **made)
        from peft import LoraConfig

        lora = LoraConfig(
            r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=settings.dropout,
            task_type=task.peft_task_type(model.backbone),
        )  # fmt: skip
        info = AdapterInfo(name=way, labels=task.labels, task=task.name)
        adapter = task.new_adapter(info, model.backbone, lora)
        examples = task.encode(rows, model.backbone)
        self.run = partial(
            loop.train_adapters, model, task, [adapter], examples, [0] * len(examples),
            [list(range(len(examples)))] * options.turns, settings, Accelerator(cpu=True),
        )  # fmt: skip


def measured(
    model: ah.AdaptedModel, options: argparse.Namespace, folder: Path
) -> dict[str, list[float]]:
    """Seconds of each step of each way, whose steps take turns in threads that wait for theirs."""
    import threading

    ways = options.ways
    turn, seconds = threading.Condition(), {way: [] for way in ways}
    now, step = [0], loop._Run.step

    def waiting(way: str, place: int) -> None:
        def timed(self: loop._Run, *given: object) -> object:
            with turn:
                turn.wait_for(lambda: now[0] % len(ways) == place)
            started = time.perf_counter()
            out = step(self, *given)
            seconds[way].append(time.perf_counter() - started)
            with turn:
                now[0] += 1
                turn.notify_all()
            return out

        steps[way] = timed

    steps: dict[str, object] = {}
    for place, way in enumerate(ways):
        waiting(way, place)
    loop._Run.step = lambda self, *given: steps[self.trainees[0].adapter.name](self, *given)
    threads = [threading.Thread(target=Stepping(model, options, folder, way).run) for way in ways]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        loop._Run.step = step
    return seconds


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", help="default: a small encoder with random weights")
    tasks = ("classification", "language-modeling")
    parser.add_argument("--task", default="classification", choices=tasks)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--words", type=int, default=32)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="PATH", help="write the measurements here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as place:
        folder = Path(place)
        lines = [f'{{"text": "{" ".join(WORDS[n:] + WORDS[:n])}"}}\n' for n in range(len(WORDS))]
        (folder / "text.jsonl").write_text("".join(lines))
        backbone = options.backbone or random_encoder(folder / "encoder")
        model = ah.load_backbone(backbone, library=folder / "library", device="cpu")
        seconds = measured(model, options, folder)
    median = {way: statistics.median(of_way[2:]) for way, of_way in seconds.items()}
    first = median[options.ways[0]]
    shown = [
        [way, f"{1000 * value:.1f}", f"{1000 * (value - first):+.1f}", f"{value / first:.2f}"]
        for way, value in median.items()
    ]
    name = options.backbone or "a random encoder (6 layers, width 256, 30,000 tokens)"
    title = (
        f"{options.task} on {name}: {options.rows} rows of {options.words} words, "
        f"{options.turns} turns, {options.threads} threads"
    )
    head = ["way", "ms a step", f"- {options.ways[0]}", f"/ {options.ways[0]}"]
    report(title, markdown(head, shown), {"seconds": seconds}, options.json)


if __name__ == "__main__":
    main()
