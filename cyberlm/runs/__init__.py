"""The story of a training run and of an evaluation, told from top to bottom."""

from cyberlm.runs.evaluating import evaluate, run_evaluation
from cyberlm.runs.training import run_training, train

__all__ = ["evaluate", "run_evaluation", "run_training", "train"]
