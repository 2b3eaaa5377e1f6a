"""What ``--for keras`` wrote, in KerasHub: on TensorFlow, JAX or PyTorch, by ``KERAS_BACKEND``.

KerasHub reads transformers' folders itself, but leaves a text classifier's head as it was made.
Knows where the weights of heads go. Needs keras-hub and safetensors, and never imports torch.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from adapters_hub.errors import BackboneError
from adapters_hub.extras import require

if TYPE_CHECKING:
    import keras_hub

_CLASSIFIERS = {
    "bert": ("BertTextClassifier", {"output_dense": "classifier"}),
    "distilbert": (
        "DistilBertTextClassifier",
        {"pooled_dense": "pre_classifier", "output_dense": "classifier"},
    ),
    "roberta": (
        "RobertaTextClassifier",
        {"pooled_dense": "classifier.dense", "output_dense": "classifier.out_proj"},
    ),
    "xlm-roberta": (
        "XLMRobertaTextClassifier",
        {"pooled_dense": "classifier.dense", "output_dense": "classifier.out_proj"},
    ),
}
"""A model's type → KerasHub's class of text classifiers, and which of its layers is which here."""


def load_keras(folder: str | os.PathLike[str]) -> "keras_hub.models.Task":
    """A KerasHub model of a transformers folder: a text classifier with its head, or a causal one.

    It has no preprocessor: it takes ``{"token_ids": (rows, tokens), "padding_mask": …}`` of the
    folder's own tokenizer, int32 (``segment_ids``, too, of BERT), and gives logits (rows, classes)
    or (rows, tokens, vocabulary). Raises `BackboneError` for a folder that is neither, and
    `MissingExtraError` without keras-hub.
    """
    models = require("keras_hub.models", "keras", "load_keras")
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise BackboneError(f"{folder}: no config.json, so this is not a model folder") from error
    kind, (architecture, *_) = config["model_type"], config.get("architectures") or [""]
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return models.CausalLM.from_preset(str(folder), preprocessor=None)
    if not architecture.endswith("ForSequenceClassification") or kind not in _CLASSIFIERS:
        raise BackboneError(
            f"{folder} is a {architecture or kind}: KerasHub has text classifiers of "
            f"{', '.join(_CLASSIFIERS)}, and causal language models"
        )
    from safetensors.numpy import load_file

    name, layers = _CLASSIFIERS[kind]
    backbone = models.Backbone.from_preset(str(folder))
    labels = len(config.get("id2label") or {}) or 2
    model = getattr(models, name)(backbone=backbone, num_classes=labels, preprocessor=None)
    tensors = load_file(folder / "model.safetensors")
    for layer, ours in layers.items():
        weight, bias = tensors[f"{ours}.weight"].T, tensors[f"{ours}.bias"]
        getattr(model, layer).set_weights([weight, bias])
    return model
