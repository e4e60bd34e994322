"""Arrays of outcomes and clusters, made from predictions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cyberlm.evaluation.predictions import Prediction
from cyberlm.runtime.errors import Problem, RunError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Clusters = ArrayLike | None
"""Number of each question's near-duplicate cluster, (N,) int; None where all are independent."""

NO_CHOICE = -1
"""Choice of a completion that names no option."""
OTHER_ANSWER = -2
"""Choice of a completion that holds a free answer other than the target."""


def has_candidates(predictions: Sequence[Prediction]) -> bool:
    """True if there is anything to choose by likelihood; of free answers the target alone is scored."""
    return any(row.n_options > 1 for row in predictions)


def choices(predictions: Sequence[Prediction], generated: bool = False) -> IntArray:
    """Indices of the chosen options, (N,) int64; `NO_CHOICE` where a completion names none.

    Args:
        generated: Whether to take the parsed completion instead of the option chosen by likelihood.

    Raises:
        RunError: If completions are asked for and some predictions hold none.
    """
    if not generated:
        return np.array([prediction.choice for prediction in predictions], dtype=np.int64)
    without = sum(prediction.generated is None for prediction in predictions)
    if without:
        raise RunError(
            "Accuracy by generation cannot be measured.",
            [Problem(f"{without} of {len(predictions)} predictions hold no generated answer", "a completion for each")],
            hint="Score the model again with evaluation.generate=true.",
        )
    named = [NO_CHOICE if p.parsed is None else p.parsed for p in predictions]
    return np.array([OTHER_ANSWER if isinstance(choice, str) else choice for choice in named], dtype=np.int64)


def golds(predictions: Sequence[Prediction]) -> IntArray:
    """Indices of the right options, (N,) int64."""
    return np.array([prediction.gold for prediction in predictions], dtype=np.int64)


def right(predictions: Sequence[Prediction], generated: bool = False) -> BoolArray:
    """Questions answered right, (N,) bool; a completion that names no option is wrong.

    Raises:
        RunError: As `choices`.
    """
    return choices(predictions, generated) == golds(predictions)


def cluster_sums(values: ArrayLike, clusters: Clusters = None) -> FloatArray:
    """Sums (G, ...) of the values (N, ...) of each near-duplicate cluster; without clusters, the values."""
    each = np.asarray(values, dtype=np.float64)
    if clusters is None:
        return each
    members = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.zeros((members.max() + 1, *each.shape[1:]))
    np.add.at(sums, members, each)
    return sums
