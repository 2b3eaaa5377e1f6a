"""From settings to trained adapters: the one accelerate loop, checkpoints, weights of a blend.

Knows tasks by their interface.
"""
