"""Metric: a named figure of one model; the functions that compute metrics are entries of the group `metrics`.

An entry's `_target_` names a function `(predictions, context, **settings)` that yields metrics; its other keys are
the settings. Where a metric does not apply (no rotations were answered, nothing was generated) it is not yielded.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from hydra.errors import HydraException
from hydra.utils import get_method
from numpy.typing import ArrayLike

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.predictions import Predictions
from cyberlm.evaluation.statistics import Clusters, FloatArray, effective_questions, mean_estimate, wilson
from cyberlm.runtime.errors import ConfigError, Problem, RunError

Place = Literal["headline", "evidence", "note", "detail"]


@dataclass(frozen=True)
class Metric:
    """A figure of one model.

    Attributes:
        name: Key in results.json, loggers and leaderboard.csv.
        value: None where it is undefined; `note` says why.
        note: Sentence without a full stop: a warning, or the reason why the value is None.
        label: Name in tables; `name` where empty.
        format_spec: Of value and interval in tables, as `format()` takes it; one that ends with % is of a share.
        place: Where it is shown: `headline` in the first table, the model card and the leaderboard, with its note;
            `evidence` in the second table, with its note; `note` by its note alone; `detail` only in results.json and
            loggers, note included.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None = None
    n: int | None = None
    note: str = ""
    label: str = ""
    format_spec: str = ".4f"
    place: Place = "headline"

    @property
    def is_share(self) -> bool:
        return self.format_spec.endswith("%")

    def shown(self) -> str:
        """Value alone: `41.2%`; `-` where it is undefined."""
        return "-" if self.value is None else format(self.value, self.format_spec)

    def limits(self) -> str:
        """`30.0% to 45.3%`; empty without an interval."""
        return " to ".join(format(limit, self.format_spec) for limit in self.interval or ())

    def count(self) -> str:
        """Questions that it rests on, of a share how many of them: `56 of 150`; empty where it is undefined."""
        if self.n is None or self.value is None:
            return ""
        return f"{round(self.value * self.n)} of {self.n}" if self.is_share else str(self.n)

    def basis(self, usual: int | None = None) -> str:
        """`95%: 30.0% to 45.3%, 56 of 150`; of what is no share, questions only where their number is not usual."""
        limits = f"95%: {self.limits()}" if self.interval and not self.label.endswith("%)") else self.limits()
        count = self.count() if self.is_share else f"{self.n} questions" if self.n not in (None, usual) else ""
        return ", ".join(filter(None, (limits, count)))

    def text(self) -> str:
        """Value with its interval: `41.2% (37-46%)`, `0.12 (0.05, 0.20)`; `-` where it is undefined."""
        if self.value is None or self.interval is None:
            return self.shown()
        low, high = self.interval
        if self.is_share:
            return f"{self.shown()} ({100 * low:.0f}-{high:.0%})"
        return f"{self.shown()} ({low:{self.format_spec}}, {high:{self.format_spec}})"


def share_metric(
    name: str, hits: ArrayLike, clusters: Clusters = None, *, note: str = "", label: str = "", place: Place = "headline"
) -> Metric:
    """Share of questions, with Wilson's interval on their effective number.

    Args:
        hits: (N,) bool, whether each question counts; without clusters also float in [0, 1], counting in part.

    Raises:
        RunError: If there are no questions.
    """
    values = np.asarray(hits, dtype=np.float64)
    if not values.size:
        raise RunError("There are no questions to score.", [Problem(f"{name}: a share of 0 questions is undefined")])
    share = math.fsum(values.tolist()) / values.size
    limits = wilson(share, effective_questions(values, clusters))
    return Metric(name, share, limits, values.size, note, label, ".1%", place)


def mean_metric(
    name: str, values: Sequence[float], clusters: Clusters, label: str, place: Place = "headline"
) -> Metric:
    """Mean with its 95% interval by t; without one where nothing varies."""
    found = mean_estimate(values, clusters)
    limits = found.interval() if found else None
    return Metric(name, sum(values) / len(values), limits, len(values), "", label, ".3f", place)


def chance_metric(name: str, draws: FloatArray, n: int, label: str) -> Metric:
    """Mean of draws of a figure under chance, with their 5% and 95% quantiles."""
    low, high = np.quantile(draws, 0.05), np.quantile(draws, 0.95)
    return Metric(name, float(draws.mean()), (float(low), float(high)), n, "", label, ".3f", "evidence")


MetricFunction = Callable[[Predictions, EvalSet], Iterable[Metric]]


def metric_functions(entries: Mapping[str, Any]) -> dict[str, MetricFunction]:
    """Functions of the entries of the group `metrics`, by the entry's name, with their settings.

    Raises:
        ConfigError: If an entry has no `_target_`, or one that is no function; with all of these.
    """
    functions: dict[str, MetricFunction] = {}
    problems = []
    for name, entry in entries.items():
        settings = dict(entry) if isinstance(entry, Mapping) else {}
        try:
            functions[name] = partial(get_method(str(settings.pop("_target_"))), **settings)
        except KeyError:
            problems.append(Problem(f"metrics.{name} has no _target_", "_target_: module.function"))
        except (HydraException, ImportError, ValueError) as error:
            problems.append(Problem(f"metrics.{name}: {str(error).splitlines()[0]}", "_target_: module.function"))
    if problems:
        raise ConfigError("These metrics cannot be computed:", problems, "Their modules must be on PYTHONPATH.")
    return functions


def compute_metrics(
    entries: Mapping[str, Any], models: Mapping[str, Predictions], context: EvalSet
) -> dict[str, dict[str, Metric]]:
    """All metrics of all models: by model, then by the metric's name, in the order of the entries.

    Raises:
        RunError: If two metrics have one name.
    """
    functions = metric_functions(entries)
    by_model: dict[str, dict[str, Metric]] = {}
    for model, predictions in models.items():
        found = by_model[model] = {}
        for entry, function in functions.items():
            for metric in function(predictions, context):
                if metric.name in found:
                    raise RunError(f"Two metrics are named {metric.name}.", [Problem(f"metrics.{entry} yields one")])
                found[metric.name] = metric
    return by_model
