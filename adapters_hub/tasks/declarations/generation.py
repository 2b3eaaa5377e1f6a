"""What text generation says of itself."""

from dataclasses import dataclass

from adapters_hub.errors import SettingsError
from adapters_hub.tasks.declaration import Declaration, Sample, TaskOptions, option


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(TaskOptions):
    """Settings of text generation."""

    prompt: str | None = option(
        None, "a template over the row's fields, such as '{text} {question}'; default: the text"
    )
    chat: bool = option(False, "set the prompt into the tokenizer's chat template")
    max_new_tokens: int = option(128, "tokens written in the test")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens < 1:
            raise SettingsError(f"max_new_tokens={self.max_new_tokens}: must be 1 or more")


DECLARATION = Declaration(
    name="generation",
    class_name="Generation",
    pipeline_tag="text-generation",
    options=GenerationOptions,
    fields=("target",),
    withstands=("segmentation", "words", "dropped words"),  # of the prompt's text
    sample=Sample(
        settings={"columns": {"target": "answer"}, "prompt": "{text}\n{question}\n"},
        name="my-hotel-answers",
    ),
)
