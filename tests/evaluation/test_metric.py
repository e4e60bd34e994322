"""Metrics as entries of a configuration group: found, computed, refused, and shown."""

from collections.abc import Iterator

import pytest
from statistics_support import predictions

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, compute_metrics
from cyberlm.evaluation.predictions import Predictions
from cyberlm.runtime.errors import ConfigError, RunError

MODELS = {"one": Predictions(predictions("ABCD", "ABCC")), "two": Predictions(predictions("ABCD", "ABCD"))}
CONTEXT = EvalSet(None, ())  # type: ignore[arg-type]  # these metrics read predictions alone


def share_right(given: Predictions, context: EvalSet, scale: float = 1.0) -> Iterator[Metric]:
    yield Metric("share_right", scale * sum(row.correct for row in given.test) / len(given.test), n=len(given.test))


def entry(name: str, **settings: object) -> dict[str, object]:
    return {"_target_": f"{__name__}.{name}", **settings}


def test_entries_are_computed_for_each_model_with_their_settings() -> None:
    found = compute_metrics({"own": entry("share_right", scale=100.0)}, MODELS, CONTEXT)
    assert found == {
        "one": {"share_right": Metric("share_right", 75.0, n=4)},
        "two": {"share_right": Metric("share_right", 100.0, n=4)},
    }


def test_entries_that_name_no_function_or_one_name_twice_are_refused() -> None:
    entries = {"a": {}, "b": {"_target_": "cyberlm.no_such.module"}, "c": entry("no_such"), "d": {"_target_": "x"}}
    with pytest.raises(ConfigError) as raised:
        compute_metrics(entries, MODELS, CONTEXT)
    named = [problem.what.split(":")[0].split(" ")[0] for problem in raised.value.problems]
    assert named == [f"metrics.{name}" for name in entries]
    with pytest.raises(RunError, match=r"Two metrics are named share_right\.(.|\n)*metrics\.b"):
        compute_metrics({"a": entry("share_right"), "b": entry("share_right")}, MODELS, CONTEXT)


def test_a_metric_as_text() -> None:
    share = Metric("a", 0.412, (0.37, 0.46), format_spec=".1%")
    skill = Metric("a", 0.12, (0.05, 0.2), format_spec=".2f")
    assert (share.text(), skill.text()) == ("41.2% (37-46%)", "0.12 (0.05, 0.20)")
    assert (Metric("a", 1.23456).text(), Metric("a", None, note="undefined").text()) == ("1.2346", "-")
