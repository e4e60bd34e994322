"""Lightning callbacks that every run has."""

from cyberlm.callbacks.meters import CostMeter, RandomState, TrainingProgress
from cyberlm.callbacks.numbers import FiniteNumbers, LearningWatch
from cyberlm.callbacks.resuming import BestWeights, EarlyStopping, ResumePoints, validation_figures
from cyberlm.callbacks.rows import MetricRows
from cyberlm.callbacks.steps import StepNumbers

__all__ = [
    "BestWeights",
    "CostMeter",
    "EarlyStopping",
    "FiniteNumbers",
    "LearningWatch",
    "MetricRows",
    "RandomState",
    "ResumePoints",
    "StepNumbers",
    "TrainingProgress",
    "validation_figures",
]
