"""What a card says of loading an adapter without this library, as code that runs as it stands.

Knows which class of transformers goes with which of the Hub's pipeline tags; loads nothing.
"""

import json
from collections.abc import Mapping

from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.library.paths import STARTER

_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "feature-extraction": "AutoModel",
    "fill-mask": "AutoModelForMaskedLM",
}
_OF_TASK_TYPES = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM"}
_LABELLED = ("text-classification", "token-classification")


def usage(info: AdapterInfo, config: Mapping[str, object]) -> str:
    """The card's last section, of an adapter with PEFT's ``config``.

    How it is added to a library, and how PEFT loads it; the latter only where the class is known.
    """
    parts = [
        "## Use it elsewhere",
        "From a download of this folder, into a library, or with PEFT alone:",
        f"```sh\nadapters-hub add . --name {info.name}\n```",
    ]
    if code := _code(info, config):
        parts.append(f"```python\n{code}\n```")
    return "\n" + "\n\n".join(parts) + "\n"


def _code(info: AdapterInfo, config: Mapping[str, object]) -> str | None:
    """Lines of Python that load the adapter into transformers' class; None where it is unknown."""
    name = _CLASSES.get(info.pipeline_tag or "") or _OF_TASK_TYPES.get(str(config.get("task_type")))
    if name is None or info.backbone is None:
        return None
    lines = ["from peft import PeftModel", f"from transformers import {name}, AutoTokenizer", ""]
    if info.backbone == STARTER:
        lines.insert(0, "from adapters_hub.library.paths import starter_folder")
        lines.append("backbone = starter_folder()  # which ships with adapters-hub")
    else:
        lines.append(f"backbone = {_quoted(info.backbone)}")
    revision = f"revision={_quoted(info.revision)}, " if info.revision else ""
    lines += [
        f"tokenizer = AutoTokenizer.from_pretrained(backbone{revision and ', ' + revision[:-2]})",
        f"model = {name}.from_pretrained(",
        f'    backbone, {revision}dtype="auto",  # the precision of the checkpoint',
    ]
    if info.labels and info.pipeline_tag in _LABELLED:
        labels = ", ".join(f"{n}: {_quoted(label)}" for n, label in enumerate(info.labels))
        lines.append(f"    num_labels={len(info.labels)},")
        lines.append(f"    id2label={{{labels}}},")
        if info.problem_type:
            lines.append(f"    problem_type={_quoted(info.problem_type)},")
    if name == "AutoModelForQuestionAnswering" and _in_transformer(config):
        lines.append(
            '    key_mapping={r"^model\\.": "transformer."},  # as this class calls the body'
        )
    lines += [")", 'model = PeftModel.from_pretrained(model, ".").eval()']
    return "\n".join(lines)


def _in_transformer(config: Mapping[str, object]) -> bool:
    """Whether the class calls the body ``transformer``, where checkpoints say ``model``."""
    targets = config.get("target_modules")
    names = targets if isinstance(targets, list) else []
    return any(str(name).startswith("transformer.layers.") for name in names)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
