"""What question answering says of itself."""

from dataclasses import dataclass

from adapters_hub.errors import SettingsError
from adapters_hub.tasks.declaration import Declaration, Sample, TaskOptions, option


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringOptions(TaskOptions):
    """Settings of question answering."""

    stride: int = option(64, "tokens that windows of a long text share")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 0:
            raise SettingsError(f"stride={self.stride}: must be 0 or more")


DECLARATION = Declaration(
    name="question-answering",
    class_name="QuestionAnswering",
    pipeline_tag="question-answering",
    options=QuestionAnsweringOptions,
    fields=("question", "answers", "answer", "answer_start"),
    auto_class="AutoModelForQuestionAnswering",
    peft_task_type="QUESTION_ANS",
    withstands=("segmentation",),  # answers are characters of the text
    sample=Sample(folder="questions", name="my-hotel-questions"),
)
