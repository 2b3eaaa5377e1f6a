"""Penalties beside a task's loss: what holds an adapter near the backbone, or its outputs together.

One file a method in ``methods``; `registry` finds them by looking. A method knows factors, tasks by
their interface and the passes over a batch; it does not know optimizers, processes or files of
settings. Its weight, and how that follows a target, is `penalties`' and `control`'s.
"""
