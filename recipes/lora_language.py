"""Train language adapters by ``accelerate launch``: see adapters_hub/recipes/language.py.

    accelerate launch recipes/lora_language.py --language da --data my/danish.jsonl

``adapters-hub train language`` is the same in one process.
"""

from adapters_hub.recipes.language import RECIPE

if __name__ == "__main__":
    RECIPE.main()
