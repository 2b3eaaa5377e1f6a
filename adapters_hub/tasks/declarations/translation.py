"""What translation says of itself."""

from dataclasses import dataclass

from adapters_hub.tasks.declaration import Declaration, Sample, option
from adapters_hub.tasks.declarations.generation import GenerationOptions


@dataclass(frozen=True, kw_only=True)
class TranslationOptions(GenerationOptions):
    """Settings of translation."""

    target_language: tuple[str, ...] = option(
        (), "languages to translate into; none given: all in the data"
    )


DECLARATION = Declaration(
    name="translation",
    class_name="Translation",
    pipeline_tag="translation",
    options=TranslationOptions,
    fields=("target", "target_language"),
    withstands=("segmentation",),
    sample=Sample(settings={"language": ("en",)}, name="my-hotel-translation"),
)
