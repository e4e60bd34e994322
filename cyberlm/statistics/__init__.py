"""Statistics of answers: intervals, comparisons, letter bias, calibration, doubtful keys. Pure functions; no torch.

docs/results.md says what each number is; the source of every formula stands with its function.
"""

from cyberlm.statistics.calibration import Calibration, CalibrationReport, calibrate, calibration, fit_temperature
from cyberlm.statistics.intervals import AccuracyInterval, accuracy_interval
from cyberlm.statistics.letters import Debiasing, LetterBias, debias, letter_bias, letter_prior, without_prior
from cyberlm.statistics.noise import NoiseSensitivity, Suspect, check_suspects, noise_sensitivity, read_suspects
from cyberlm.statistics.outcomes import choices, cluster_numbers, golds, option_scores, right
from cyberlm.statistics.pairs import (
    NAMED,
    NAMED_BY_BOTH,
    MeanDifference,
    PairComparison,
    compare_means,
    compare_models,
)
from cyberlm.statistics.permutations import (
    PermutationScores,
    permutation_scores,
    prior_sample,
    rotate,
    rotations,
    safe_to_permute,
)

__all__ = [
    "NAMED",
    "NAMED_BY_BOTH",
    "AccuracyInterval",
    "Calibration",
    "CalibrationReport",
    "Debiasing",
    "LetterBias",
    "MeanDifference",
    "NoiseSensitivity",
    "PairComparison",
    "PermutationScores",
    "Suspect",
    "accuracy_interval",
    "calibrate",
    "calibration",
    "check_suspects",
    "choices",
    "cluster_numbers",
    "compare_means",
    "compare_models",
    "debias",
    "fit_temperature",
    "golds",
    "letter_bias",
    "letter_prior",
    "noise_sensitivity",
    "option_scores",
    "permutation_scores",
    "prior_sample",
    "read_suspects",
    "right",
    "rotate",
    "rotations",
    "safe_to_permute",
    "without_prior",
]
