"""Records of results.json, of which docs/results.md documents every field. No torch here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cyberlm.config.schema import ModelConfig, QuantConfig
from cyberlm.evaluation.metrics.metric import Metric
from cyberlm.evaluation.predictions import LIKELIHOOD

SCHEMA_VERSION = 2
"""Of results.json: raised when a field changes its meaning or goes away."""


@dataclass(frozen=True)
class ModelSpec:
    """A model of an evaluation: as requested and, once it is loaded, as found.

    Attributes:
        kind: `base`, `adapter`, or `weights` (merged or fully tuned).
        name: In tables and files; in results.json the key.
        model, quant_config: The weights to load; for an adapter, those of its base. Not in results.json.
        folder: Of the adapter, or of the weights; None for a base model. Not in results.json.
        runs: Training runs that it comes from. Not in results.json.
    """

    source: str
    kind: str
    base: str = ""
    quant: str = "none"
    weights: str = ""
    adapter: str | None = None
    prompt: str = ""
    tuned_from: str | None = None
    name: Annotated[str, Field(exclude=True)] = ""
    model: Annotated[ModelConfig, Field(exclude=True)] = field(default_factory=ModelConfig)
    quant_config: Annotated[QuantConfig, Field(exclude=True)] = field(default_factory=QuantConfig)
    folder: Annotated[Path | None, Field(exclude=True)] = None
    runs: Annotated[tuple[Path, ...], Field(exclude=True)] = ()


@dataclass(frozen=True)
class PairComparison:
    """Comparison of two models by one outcome, the second minus the first.

    `p_mid`, `first_right` and `second_right` are None in older files, and `family` is empty.
    """

    first: str
    second: str
    n: int
    difference: float
    ci_lo: float
    ci_hi: float
    only_first_right: int
    only_second_right: int
    p_value: float
    p_holm: float
    detectable: float | None
    lost: tuple[str, ...]
    gained: tuple[str, ...]
    outcome: str = LIKELIHOOD
    p_mid: float | None = None
    family: str = ""
    first_right: int | None = None
    second_right: int | None = None

    @property
    def p(self) -> float:
        """p-value that decides, before correction: `p_mid`, or that of an older file."""
        return self.p_value if self.p_mid is None else self.p_mid


@dataclass(frozen=True)
class MeanDifference:
    """Comparison of two models by the mean of a figure that each question has, the second minus the first.

    Without interval and p-values where all differ alike or not at all, or are one cluster.
    """

    first: str
    second: str
    outcome: str
    n: int
    difference: float
    ci_lo: float | None
    ci_hi: float | None
    p_value: float | None
    p_holm: float | None
    family: str

    @property
    def p(self) -> float | None:
        """p-value that decides, before correction."""
        return self.p_value


@dataclass(frozen=True)
class Cost:
    """Cost of a run. Tokens of training are counted over all steps; speeds leave validation out."""

    trainable_parameters: int
    total_parameters: int
    seconds: dict[str, float]
    processed_tokens: int
    nonpadding_tokens: int
    label_tokens: int
    nonpadding_tokens_per_second: float
    peak_host_bytes: int
    peak_device_bytes: int | None
    adapter_bytes: int
    predicted_peak_bytes: int | None = None
    computed_tokens_per_second: float | None = None

    @property
    def peak_bytes(self) -> int:
        """Of the GPU where there was one, else of the host."""
        return self.peak_device_bytes or self.peak_host_bytes


@dataclass(frozen=True)
class Results:
    """results.json: everything a run found."""

    schema_version: int
    kind: str
    model: str
    method: str
    quant: str
    prompt: str
    data: str
    questions: dict[str, int]
    models: dict[str, ModelSpec]
    metrics: dict[str, dict[str, Metric]]
    comparisons: tuple[PairComparison, ...]
    differences: tuple[MeanDifference, ...]
    objective: float | None
    steps: int
    cost: Cost | None
    provenance: dict[str, str]
    monitor: str | None = None
    validation: dict[str, float | None] = field(default_factory=dict)
