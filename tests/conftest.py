"""Tiny backbones of every shape, built from configurations once a run; no network, no downloads."""

import gc
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # Workers share the cores; their threads would wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import string
from pathlib import Path

import pytest

from adapters_hub.openmp import wait_shortly

wait_shortly()
pytest.register_assert_rewrite("helpers")

WORDS = [
    "the",
    "room",
    "was",
    "clean",
    "and",
    "quiet",
    "staff",
    "rude",
    "slow",
    "never",
    "again",
    "lovely",
    "view",
    "near",
    "station",
]
TEXTS = [
    "the room was clean and quiet",
    "staff rude and slow",
    "never again",
    "lovely view",
    "房间很干净",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = 256
DECODERS = ("qwen3", "gpt2", "llama", "gemma3")
MOE = ("gpt-oss", "qwen3-moe", "mixtral")
ENCODERS = ("bert", "xlm-roberta", "modernbert")
SEQ2SEQ = ("mt5", "m2m100")


def tiny_tokenizer():
    """A WordPiece tokenizer of characters and a few words, with BERT's handling of Chinese."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_lowercase + string.digits + string.punctuation + "äöüßé"
    tokens = [
        *SPECIAL,
        *WORDS,
        *letters,
        *(f"##{c}" for c in letters),
        *"房间很干净服务差好我们酒店不太喜欢",
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    assert len(vocabulary) <= VOCABULARY
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", bos_token="[CLS]", eos_token="[SEP]",
    )  # fmt: skip


def tiny_config(kind):
    import transformers as t

    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    body = {**ids, **wide, "intermediate_size": 48}
    kv = {"num_key_value_heads": 1, "head_dim": 16}
    experts = {**body, **kv, "num_experts_per_tok": 2}
    return {
        "bert": lambda: t.BertConfig(**body),
        "xlm-roberta": lambda: t.XLMRobertaConfig(**body, max_position_embeddings=130),
        "modernbert": lambda: t.ModernBertConfig(**body, cls_token_id=2, sep_token_id=3),
        "qwen3": lambda: t.Qwen3Config(**body, **kv, tie_word_embeddings=True),
        "llama": lambda: t.LlamaConfig(**body),
        "gemma3": lambda: t.Gemma3TextConfig(**body, **kv),
        "gpt-oss": lambda: t.GptOssConfig(**experts, num_local_experts=4, sliding_window=8),
        "qwen3-moe": lambda: t.Qwen3MoeConfig(**experts, num_experts=4, moe_intermediate_size=24),
        "mixtral": lambda: t.MixtralConfig(**experts, num_local_experts=4),
        "gpt2": lambda: t.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **ids),
        "mt5": lambda: t.MT5Config(
            d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, vocab_size=VOCABULARY,
            pad_token_id=0, eos_token_id=3, decoder_start_token_id=0,
        ),
        "m2m100": lambda: t.M2M100Config(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
            max_position_embeddings=128, decoder_start_token_id=3, **ids,
        ),
        "bart": lambda: t.BartConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
            max_position_embeddings=128, decoder_start_token_id=3, **ids,
        ),
    }[kind]()  # fmt: skip


def auto_class(kind):
    import transformers as t

    if kind in ENCODERS:
        return t.AutoModelForMaskedLM
    return t.AutoModelForSeq2SeqLM if kind in (*SEQ2SEQ, "bart") else t.AutoModelForCausalLM


def pytest_collection_finish():
    """What the imports made stays, so collections of garbage need not look through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """kind → the folder of a tiny checkpoint of that architecture, made on first use."""
    import torch

    made: dict[str, Path] = {}

    def folder(kind):
        if kind not in made:
            torch.manual_seed(0)
            path = tmp_path_factory.mktemp("backbones") / kind
            model = auto_class(kind).from_config(tiny_config(kind))
            for parameter in model.parameters():  # away from zero, so that differences show
                parameter.data.add_(torch.randn_like(parameter) * 0.05)
            model.save_pretrained(path)
            tiny_tokenizer().save_pretrained(path)
            made[kind] = path
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def lora_folder(tmp_path_factory, tiny):
    """(kind, name, …) → a PEFT folder that PEFT itself made and saved, with random factors."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    made = {}

    def folder(kind, name, *, labels=0, save=None, **options):
        key = (kind, name, labels, repr(sorted(options.items())))
        if key in made:
            return made[key]
        if labels:
            base = AutoModelForSequenceClassification.from_pretrained(tiny(kind), num_labels=labels)
            options = {
                "task_type": "SEQ_CLS",
                "modules_to_save": list(HEADS.get(kind, [])) or None,
                **options,
            }
        else:
            base = auto_class(kind).from_pretrained(tiny(kind))
        settings = {"r": 4, "target_modules": "all-linear", **options}
        model = get_peft_model(base, LoraConfig(**settings))
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        for path, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = 0.3 if "lora_" in path else 0.1
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        made[key] = tmp_path_factory.mktemp("loras") / name
        model.save_pretrained(made[key], **(save or {}))
        return made[key]

    return folder


HEADS = {
    "bert": ["classifier", "pooler"],
    "modernbert": ["head", "classifier"],
    "mt5": ["classification_head"],
}


@pytest.fixture
def inputs():
    """A batch of four rows of different lengths: input_ids and attention_mask (4, 9)."""
    import torch

    torch.manual_seed(1)
    ids = torch.randint(5, 200, (4, 9))
    mask = torch.ones_like(ids)
    for row, length in enumerate((9, 6, 8, 4)):
        ids[row, 0], ids[row, length - 1] = 2, 3
        ids[row, length:], mask[row, length:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def fresh_accelerate():
    """No accelerator made before, and none left behind."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def in_double(model):
    """An adapted model that computes in float64, so that equality does not hang on rounding."""
    model.backbone.model.double()
    return model


def learn_task(model, task, rows, steps=80, name="hotel", over=None):
    """Examples, and an adapter trained on them: every row in every step."""
    from accelerate import Accelerator
    from peft import LoraConfig

    import adapters_hub as ah
    from adapters_hub.data.batches import plan_batches
    from adapters_hub.library.adapter_file import AdapterInfo
    from adapters_hub.training.loop import train_adapters

    settings = ah.TrainingSettings(
        steps=steps, batch_size=len(rows), learning_rate=1e-2, rank=4, resume=False
    )
    examples = task.encode(rows, model.backbone)
    kind = task.peft_task_type(model.backbone)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=kind)
    info = AdapterInfo(name=name, task=task.name, labels=task.labels, backbone=model.backbone.name)
    adapter = task.new_adapter(info, model.backbone, lora)
    owners = [0] * len(examples)
    batches = plan_batches(
        [len(e.input_ids) for e in examples], owners, batch_size=len(examples), steps=steps
    )
    (trained,), _ = train_adapters(
        model, task, [adapter], examples, owners, batches, settings, Accelerator(cpu=True),
        over=over or (lambda row: ah.Blend()),
    )  # fmt: skip
    return examples, trained


@pytest.fixture
def hub(tmp_path, tiny, monkeypatch):
    """org/model in a local cache, at two revisions: "main" is a llama, "old" a qwen3."""
    from huggingface_hub import constants

    repository = tmp_path / "cache" / "models--org--model"
    for revision, commit, kind in (("main", "a" * 40, "llama"), ("old", "b" * 40, "qwen3")):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in tiny(kind).iterdir():
            (snapshot / file.name).write_bytes(file.read_bytes())
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(repository.parent))
    return "org/model"


@pytest.fixture(scope="session")
def play_model(tmp_path_factory, tiny, lora_folder):
    """A tiny decoder with adapters of every kind, for the page."""
    from helpers.playground import model_of_every_kind

    return model_of_every_kind(tmp_path_factory.mktemp("play"), str(tiny("qwen3")), lora_folder)


@pytest.fixture
def playground(play_model):
    """The page's server, running."""
    from helpers.playground import served

    with served(play_model) as server:
        yield server
