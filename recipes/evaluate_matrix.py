"""Measure the matrix by ``accelerate launch``: see adapters_hub/recipes/matrix.py.

    accelerate launch recipes/evaluate_matrix.py

``adapters-hub evaluate`` is the same in one process.
"""

from adapters_hub.recipes.matrix import RECIPE

if __name__ == "__main__":
    RECIPE.main()
