"""A tiny decoder, a few texts, and the same training by our loop and by one written for PEFT."""

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.training.loop import train_adapters

TEXT = "the room was clean quiet staff rude slow never again view station breakfast cold bed"
WORDS = TEXT.split()
LABELS = ("bad", "good", "mixed")
BATCHES = [[0, 5, 2, 7], [1, 3, 6, 4], [7, 2, 0, 1]]
RATE, CLIP = 1e-2, 0.5


def tiny_decoder(path, config_class=Qwen3Config, **options):
    """A tiny decoder, a Qwen3 by default, with a word-level tokenizer, padded on the right."""
    tokens = ["<pad>", "<unk>", "</s>", *WORDS]
    words = Tokenizer(models.WordLevel({t: n for n, t in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
        padding_side="right",
    )  # fmt: skip
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=2,
        initializer_range=0.2, **{"tie_word_embeddings": config_class is Qwen3Config, **options},
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def rows():
    """Eight texts of three to ten words."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for number in range(8):
        chosen = torch.randint(len(WORDS), (3 + number,), generator=generator).tolist()
        made.append(Row(" ".join(WORDS[i] for i in chosen), LABELS[number % 3]))
    return made


def ours(model, task, adapter, examples, batches=BATCHES, **options):
    """The adapter after our training loop, with further settings."""
    settings = ah.TrainingSettings(
        steps=len(BATCHES), batch_size=4, learning_rate=RATE, schedule="linear", warmup=0.0,
        clip=CLIP, cpu=True, **options,
    )  # fmt: skip
    owners = [0] * len(examples)
    (trained,), _ = train_adapters(
        model, task, [adapter], examples, owners, batches, settings, Accelerator(cpu=True)
    )
    return trained


def theirs(peft, texts, targets, tokenizer, optimizer=None):
    """PEFT's parameters after the loop anyone would write; ``targets`` None for the text itself."""
    parameters = [p for p in peft.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(BATCHES))
    losses = []
    for numbers in BATCHES:
        batch = tokenizer([texts[i] for i in numbers], padding=True, return_tensors="pt")
        if targets is None:
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            loss = peft(**batch, labels=labels).loss
        else:
            loss = functional.cross_entropy(
                peft(**batch).logits, torch.tensor([targets[i] for i in numbers])
            )
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert losses[0] != losses[-1]
    return {
        name.replace(".default", "").replace(".modules_to_save", ""): p.detach()
        for name, p in peft.named_parameters()
        if p.requires_grad
    }
