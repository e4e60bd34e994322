"""The story of a training run and of an evaluation, told from top to bottom."""

from cyberlm.runs.evaluating import evaluate, evaluate_model, evaluate_run
from cyberlm.runs.training import run_training, train

__all__ = ["evaluate", "evaluate_model", "evaluate_run", "run_training", "train"]
