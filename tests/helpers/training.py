"""Settings of a short run, and whether two adapters are the same."""

import torch

from adapters_hub.training.settings import TrainingSettings


def settings(**values):
    base = {"task": "language-modeling", "learning_rate": 0.01, "seed": 3, "warmup": 0.2}
    return TrainingSettings(**{**base, **values})


def assert_same(one, other, **tolerance):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, **{"atol": 2e-5, "rtol": 1e-3, **tolerance})
