"""Looking at adapters: two before they are composed, one at work, what a decision hung on.

Nothing here changes an adapter or a model.
"""

from adapters_hub.interpretability.attribution import Attribution, attribute
from adapters_hub.interpretability.comparison import Comparison, compare, describe, read_texts
from adapters_hub.interpretability.correlation import (
    correlate,
    predictors_of,
    verdict,
)
from adapters_hub.interpretability.geometry import Measures
from adapters_hub.interpretability.inside import LogitLens, Whereabouts, logit_lens, where_it_acts
from adapters_hub.interpretability.plotting import plot

__all__ = [
    "Attribution",
    "Comparison",
    "LogitLens",
    "Measures",
    "Whereabouts",
    "attribute",
    "compare",
    "correlate",
    "describe",
    "logit_lens",
    "plot",
    "predictors_of",
    "read_texts",
    "verdict",
    "where_it_acts",
]
