"""Settings of a study: methods × seeds on one split, and a stage before that chooses learning rates."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from cyberlm.config.bounds import above_zero, at_least, between, folder_name

MAX_SEED = 2**32 - 1
StudyOutcome = StrEnum("StudyOutcome", "generation likelihood")


@dataclass
class StudyConfig:
    name: str = folder_name(MISSING)
    """Short name; the study's folder is outputs/study_NAME."""
    methods: list[str] = field(default_factory=list)
    """Options of the group `method` that are compared, two or more."""
    reference: str = MISSING
    """The method that the others are held against."""
    seeds: list[int] = field(default_factory=list)
    """Seeds that each method is trained with, two or more; the split has its own (data.seed)."""
    outcome: StudyOutcome = StudyOutcome.generation
    """Accuracy that the study decides by, named before any result: generation or likelihood."""
    margin: float = above_zero(0.02, most=1)
    """Largest difference of accuracy, as a share, that counts as none; named before any result."""
    tune: bool = False
    """Choose each method's learning rate on the validation questions first; false: each method's own."""
    learning_rates: dict[str, list[float]] = field(default_factory=dict)
    """Learning rates that the tuning stage tries, by method; a single one is taken as it is."""
    tune_steps: int | None = at_least(1, None)
    """Optimizer steps of a tuning job; null: as many as the others have."""
    tune_seed: int = between(0, MAX_SEED, 0)
    """Seed of the tuning jobs, none of study.seeds."""
    overrides: dict[str, list[str]] = field(default_factory=dict)
    """Additional settings by method: a list of overrides."""
    published: dict[str, float] = field(default_factory=dict)
    """Published accuracies to show beside one's own, by method."""
