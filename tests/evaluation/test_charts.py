"""Charts of a finished run as tables."""

from dataclasses import replace

import numpy as np
import pytest
from statistics_support import answered, eval_set, question

from cyberlm.evaluation.charts import Chart, charts_of
from cyberlm.evaluation.predictions import Predictions

ASKED = [replace(question(k, gold, ("north", "east")), topic=topic) for k, (gold, topic) in
         enumerate([(0, "Law: a"), (0, "Law: b"), (1, "")])]  # fmt: skip
MODELS = {
    name: Predictions([replace(answered(asked, choice, parsed=choice), topic=asked.topic) for asked, choice in pairs])
    for name, pairs in {"base": zip(ASKED, (0, 1, 1), strict=True), "tuned": zip(ASKED, (0, 0, 0), strict=True)}.items()
}


def charts(licence: str = "Apache-2.0") -> dict[str, Chart]:
    asked = eval_set(ASKED, f"data.licence='{licence}'")
    return {chart.name: chart for chart in charts_of(asked, MODELS)}


def test_charts_by_hand() -> None:
    """Right are A, A, B; the base answers A, B, B and the tuned model A, A, A."""
    found = charts()
    assert found["confusion_of_letters/base"].rows == [("A", "A", 1), ("A", "B", 1), ("B", "A", 0), ("B", "B", 1)]
    assert found["accuracy_by_topic/base"].rows == [("Law", 0.5, 2)]
    confidence = 1 / (1 + np.exp(-1))  # scores differ by 1
    lines = found["reliability"].rows
    assert lines[:2] == [(0.0, "calibrated", 0.0), (1.0, "calibrated", 1.0)]
    assert [name for _, name, _ in lines[2:]] == ["base", "tuned"]
    for x, _, share in lines[2:]:
        assert (x, share) == pytest.approx((confidence, 2 / 3))
    table = found["predictions"]
    assert dict(zip(table.columns, table.rows[1], strict=True)) == {
        **{"id": "q:0001", "topic": "Law: b", "question": "Question 1?", "right answer": "A) north"},
        **{"base choice": "B", "base right": False, "base generated": "B"},
        **{"tuned choice": "A", "tuned right": True, "tuned generated": "A"},
    }


def test_text_is_left_out_where_its_licence_does_not_allow_it() -> None:
    table = charts("none stated")["predictions"]
    assert table.columns[:3] == ("id", "topic", "right answer")
    assert table.rows[2] == ("q:0002", "", "B", "B", True, "A", False)
    free = question(0, 0, ("an answer",))  # of free answers there are no letters
    answers = {"base": Predictions([answered(free, 0)])}
    assert [chart.name for chart in charts_of(eval_set([free]), answers)] == ["predictions"]
