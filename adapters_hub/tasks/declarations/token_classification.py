"""What token classification says of itself."""

from adapters_hub.tasks.declaration import Declaration, Sample

DECLARATION = Declaration(
    name="token-classification",
    class_name="TokenClassification",
    pipeline_tag="token-classification",
    fields=("words", "tags"),
    auto_class="AutoModelForTokenClassification",
    peft_task_type="TOKEN_CLS",
    withstands=("segmentation", "words", "masks"),
    sample=Sample(folder="entities", name="my-hotel-entities"),
)
