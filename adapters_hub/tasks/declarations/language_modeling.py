"""What language modelling says of itself."""

from dataclasses import dataclass

from adapters_hub.errors import SettingsError
from adapters_hub.tasks.declaration import Declaration, TaskOptions, option


@dataclass(frozen=True, kw_only=True)
class LanguageModelingOptions(TaskOptions):
    """Settings of language modelling."""

    mask_probability: float = option(0.15, "masked language modelling: share of targets")
    packing: bool | None = option(
        None,
        "language modelling: texts are tokenised once, into a cache on disk, and packed into rows "
        "of max_length; default: where they are files of 256 MiB and more",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mask_probability <= 1:
            raise SettingsError(
                f"mask_probability={self.mask_probability}: must be between 0 and 1"
            )


DECLARATION = Declaration(
    name="language-modeling",
    class_name="LanguageModeling",
    pipeline_tag="text-generation",
    options=LanguageModelingOptions,
    objectives=("masked", "causal"),
    withstands=("segmentation", "words"),  # a word that is hidden would be a target
)
