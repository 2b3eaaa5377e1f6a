"""What must be true of an adapter's files before they go into a library: backbone, labels, card.

Knows files and a backbone's folder where it is at hand; never goes to the network.
"""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

from adapters_hub.errors import (
    AdapterFileError,
    BackboneMismatchError,
    UnsupportedAdapterError,
)
from adapters_hub.library import languages
from adapters_hub.library import model_card as card
from adapters_hub.library.adapter_file import CARD_FILE, AdapterFiles, AdapterInfo
from adapters_hub.library.fingerprint import fingerprint, lacking, misfit, weight_files
from adapters_hub.library.paths import STARTER, starter_folder
from adapters_hub.library.safetensors_file import read_header

log = logging.getLogger(__name__)

_READ_BY_CLASSIFIER = {  # types of models in which a lone classifier reads the pooler
    "albert", "bert", "ernie", "layoutlm", "megatron-bert", "mobilebert", "nezha", "rembert",
    "squeezebert",
}  # fmt: skip
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


def local_folder(backbone: str | None) -> Path | None:
    """The folder of a backbone whose files are at hand; never goes to the network."""
    if backbone == STARTER:
        return starter_folder()
    if backbone and os.path.isfile(os.path.join(backbone, "config.json")):
        return Path(backbone)
    return None


def local_fingerprint(backbone: str | None) -> str | None:
    """The fingerprint of a backbone whose files are at hand."""
    folder = local_folder(backbone)
    return fingerprint(folder) if folder else None


def check_fit(files: AdapterFiles, backbone: str) -> None:
    """Raise unless a backbone has the layers that an adapter is for."""
    tensors, wrapped = files.header.tensors, files.wrapped  # which a checkpoint may store apart
    modules = {
        module: (tensors[a].shape[1], tensors[b].shape[0])
        for module, (a, b) in files.modules.items()
        if module not in wrapped
    }
    folder = local_folder(backbone)
    if folder and modules and (why := misfit(folder, modules)):
        raise BackboneMismatchError(f"{files.weights} does not fit {backbone}: {why}")
    if missing := missing_modules(files, backbone):
        raise AdapterFileError(f"{files.weights}: {missing}; was it cut when it was saved?")


def check_pooler(files: AdapterFiles, task: str | None, backbone: str | None) -> None:
    """Refuse a classification head that reads a pooler which neither it nor the backbone has.

    PEFT saves ``classifier`` alone; where the checkpoint has no pooler, transformers made a random
    one for the training, and it is lost. Other classes than BERT's are told when they are loaded.
    """
    folder = local_folder(backbone)
    if folder is None or task not in (None, "classification"):
        return
    if set(files.head) != {"classifier.weight", "classifier.bias"}:
        return
    kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
    tensors = (name for file in weight_files(folder) for name in read_header(file).tensors)
    if kind in _READ_BY_CLASSIFIER and not any("pooler." in name for name in tensors):
        raise UnsupportedAdapterError(lost_pooler(files, str(backbone)))


def lost_pooler(files: AdapterFiles, backbone: str) -> str:
    """Why a head is refused whose pooler is lost, and what to do."""
    return (
        f"{files.weights}: its classification head reads the pooler, for which {backbone} has no "
        "weights, so the one it was trained with was random and is lost; train it again with the "
        "pooler saved beside the head: LoraConfig(modules_to_save=['classifier', 'pooler'])"
    )


def missing_modules(files: AdapterFiles, backbone: str | None) -> str | None:
    """What an adapter's configuration promises on a backbone and its file lacks, in words."""
    folder = local_folder(backbone)
    targets = files.spec.config.get("target_modules")
    partial = ("layers_to_transform", "layers_pattern", "exclude_modules")
    if folder is None or not files.modules or not isinstance(targets, list | tuple):
        return None
    if any(files.spec.config.get(key) for key in partial):
        return None
    names = lacking(folder, [str(target) for target in targets], files.modules)
    if not names:
        return None
    return (
        f"its {len(files.modules)} layers lack {len(names)} that target_modules of its "
        f"configuration names in {backbone}, such as {names[0]}"
    )


def check_labels(files: AdapterFiles, labels: tuple[str, ...] | None) -> None:
    """A label for each logit, as far as the head's shapes tell."""
    shapes = [files.header.tensors[key].shape for key in files.head.values()]
    sizes = {shape[0] for shape in shapes if shape}
    if labels and sizes and len(labels) not in sizes:
        raise AdapterFileError(
            f"{files.weights}: {len(labels)} labels ({', '.join(labels)}), and no tensor of the "
            f"head has that many rows (they have {', '.join(map(str, sorted(sizes)))})"
        )


def warn_of_tokenizer(source: Path) -> None:
    """Say that a tokenizer or chat template beside an adapter is not taken along."""
    present = [name for name in _TOKENIZER_FILES if (source / name).is_file()]
    if present:
        log.warning(
            "%s: the tokenizer there (%s) is not stored with the adapter, which is used with the "
            "tokenizer and chat template of its backbone; if they differ, use theirs to make the "
            "texts", source, ", ".join(present),
        )  # fmt: skip


def with_card(info: AdapterInfo, folder: Path) -> AdapterInfo:
    """What a plain PEFT folder's model card adds: one language, a licence, data sets."""
    front = card.read_front_matter(folder / CARD_FILE)
    language = front.get("language_bcp47") or front.get("language")
    if isinstance(language, list) and len(language) == 1:
        language = language[0]
    if not isinstance(language, str) or not languages.is_language(language):
        language = None
    licence = front.get("license")
    if licence == "other":
        licence = front.get("license_name") or licence
    datasets = front.get("datasets")
    datasets = [datasets] if isinstance(datasets, str) else datasets
    if not isinstance(datasets, list):
        datasets = []
    return replace(
        info,
        language=languages.canonical(language) if language else None,
        license=licence if isinstance(licence, str) and licence.isprintable() else None,
        datasets=tuple(
            name for name in datasets if isinstance(name, str) and name and name.isprintable()
        ),
    )
