"""Train a domain adapter by ``accelerate launch``: see adapters_hub/recipes/domain.py.

    accelerate launch recipes/lora_domain.py
    accelerate launch recipes/lora_domain.py --task classification --data my/reviews --domain hotel

``adapters-hub train domain`` is the same in one process.
"""

from adapters_hub.recipes.domain import RECIPE

if __name__ == "__main__":
    RECIPE.main()
