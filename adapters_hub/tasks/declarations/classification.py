"""What classification says of itself."""

from dataclasses import dataclass

from adapters_hub.errors import SettingsError
from adapters_hub.tasks.declaration import Declaration, TaskOptions, option


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(TaskOptions):
    """Settings of classification."""

    label_smoothing: float = option(0.0, "share of a target given evenly to all labels")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing <= 1:
            raise SettingsError(f"label_smoothing={self.label_smoothing}: must be between 0 and 1")


DECLARATION = Declaration(
    name="classification",
    class_name="Classification",
    pipeline_tag="text-classification",
    options=ClassificationOptions,
    auto_class="AutoModelForSequenceClassification",
    peft_task_type="SEQ_CLS",
    withstands=("segmentation", "words", "masks", "dropped words", "text", "embeddings"),
)
