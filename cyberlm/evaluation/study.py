"""Records of study.json: a study's table, comparisons, claims and jobs. docs/study.md explains every word."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cyberlm.runtime.files import read_json, write_json
from cyberlm.runtime.validation import from_json, to_json

STUDY_FILE = "study.json"
SCHEMA_VERSION = 1
"""Of study.json: raised when a field changes its meaning or goes away."""
AGAINST_BASE, AGAINST_REFERENCE = "against base", "against reference"
"""Families of comparisons."""
RIGHT_WHERE_NAMED = "right_where_named"
"""Outcome: share right of the completions that name an option."""


@dataclass(frozen=True)
class Figure:
    """Mean of a figure over seeds and questions; without limits where no interval is made."""

    value: float
    ci_lo: float | None
    ci_hi: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class StudyCost:
    """Cost of a method's runs: means over the seeds, and the largest peak.

    Attributes:
        peak_of: `device` or `host`.
        train_seconds, seconds: Wall time of training; of all phases.
        tokens_per_second: Effective: what a batch's prompts begin with counts in each of them.
    """

    trainable_parameters: int
    total_parameters: int
    peak_bytes: int
    peak_of: str
    train_seconds: float
    seconds: float
    tokens_per_second: float
    computed_tokens_per_second: float | None
    adapter_bytes: int


@dataclass(frozen=True)
class StudyRow:
    """A row of the table.

    Attributes:
        kind: `base` or `method`.
        figures: By outcome, as far as they were measured.
    """

    name: str
    kind: str
    quant: str
    learning_rate: float | None
    seeds: int
    figures: dict[str, Figure]
    cost: StudyCost | None = None
    published: float | None = None


@dataclass(frozen=True)
class StudyComparison:
    """Two rows of the table by one outcome, the second minus the first.

    Attributes:
        ci_lo, ci_hi: By variance components over seeds and questions, with Satterthwaite's t.
        boot_lo, boot_hi: By the crossed bootstrap, a check: too narrow for few seeds.
        words: Against the reference: `equivalent within N points`, `differs` or `not shown to differ`.
        mcnemar: Mid-p of McNemar's test of each seed; empty where outcomes are not right or wrong.
    """

    first: str
    second: str
    outcome: str
    family: str
    difference: float
    ci_lo: float
    ci_hi: float
    boot_lo: float
    boot_hi: float
    p: float
    p_holm: float
    words: str
    mcnemar: tuple[float, ...]


@dataclass(frozen=True)
class Claim:
    """A claim about one method, and the test that decides it.

    Attributes:
        name: `above base`, `non-inferior`, `equivalent` or `superior`.
        p_value: None where it was not tested, for an earlier claim does not hold.
        level: The claim holds where `p_holm` is at most this.
    """

    name: str
    method: str
    against: str
    p_value: float | None
    p_holm: float | None
    level: float
    holds: bool
    reason: str


@dataclass(frozen=True)
class TunedRate:
    """A learning rate that was tried, and its validation figures; none where its job did not finish."""

    method: str
    learning_rate: float
    option_nll: float | None
    accuracy: float | None
    chosen: bool
    folder: str
    reason: str = ""


@dataclass(frozen=True)
class StudyJob:
    """A run of a study.

    Attributes:
        stage: `tune` or `confirm`.
        state: `finished`, `failed`, `stopped`, `killed` or `not started`.
    """

    name: str
    stage: str
    method: str
    seed: int
    learning_rate: float | None
    state: str
    reason: str
    folder: str
    figures: dict[str, float] = field(default_factory=dict)
    train_seconds: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Curve:
    """Validation of a run by optimizer step; free answers have no accuracy."""

    method: str
    seed: int
    steps: tuple[int, ...]
    option_nll: tuple[float, ...]
    accuracy: tuple[float | None, ...]


@dataclass(frozen=True)
class Study:
    """study.json.

    Attributes:
        state: `finished`, or `unfinished` where jobs are missing.
        outcome: Accuracy that the claims are about, named before any result, as is `margin` (a share).
        clusters: Of near-duplicates among the test questions.
        split: SHA-256 of the split manifest, the same of all jobs.
        supported_margin: Margin that such a study shows 90 times in 100 where there is no difference.
        power: Sentences on what so many questions and seeds can show.
        floors: Accuracies of what needs no model, by name.
        notes: Limits of the figures: failed jobs, costs of jobs that shared a machine.
    """

    schema_version: int
    name: str
    state: str
    command: str
    model: str
    data: str
    prompt: str
    outcome: str
    margin: float
    reference: str
    seeds: tuple[int, ...]
    questions: dict[str, int]
    clusters: int
    split: str
    tuning: tuple[TunedRate, ...]
    rows: tuple[StudyRow, ...]
    comparisons: tuple[StudyComparison, ...]
    claims: tuple[Claim, ...]
    supported_margin: float | None
    findings: tuple[str, ...]
    power: tuple[str, ...]
    floors: dict[str, float]
    notes: tuple[str, ...]
    jobs: tuple[StudyJob, ...]
    curves: tuple[Curve, ...]
    provenance: dict[str, str]

    def comparison(self, second: str, family: str, outcome: str) -> StudyComparison | None:
        """That of one row; None where there is none."""
        found = {(pair.second, pair.family, pair.outcome): pair for pair in self.comparisons}
        return found.get((second, family, outcome))

    def methods(self) -> Sequence[StudyRow]:
        return [row for row in self.rows if row.kind == "method"]


def write_study(study: Study, folder: Path) -> None:
    """Writes study.json."""
    write_json(folder / STUDY_FILE, to_json(study, STUDY_FILE))


def read_study(folder: Path) -> Study:
    """Reads study.json."""
    hint = "A study's folder is outputs/study_NAME; the command that made it writes the file again."
    return from_json(Study, read_json(folder / STUDY_FILE, hint), str(folder / STUDY_FILE), hint)
