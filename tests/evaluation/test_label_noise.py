"""Accuracy under doubt about the keys, and the file that lists the doubtful ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from statistics_support import answered, measured, predictions, question

from cyberlm.evaluation.metrics.label_noise import NoisyLabel, label_noise, read_noisy_labels
from cyberlm.evaluation.metrics.metric import Metric, share_metric
from cyberlm.runtime.errors import RunError
from cyberlm.tasks.task import Example

HASH = "0123456789abcdef"
GOOD = {"hash": HASH, "reason": "doubtful", "corrected": None}


def write(folder: Path, *items: Any, **fields: Any) -> Path:
    path = folder / "suspects.json"
    path.write_text(json.dumps({"version": 1, "items": items} | fields))
    return path


def sensitivity(path: Path, asked: list[Example], choices: list[int]) -> dict[str, Metric]:
    rows = [answered(q, choice) for q, choice in zip(asked, choices, strict=True)]
    return measured(label_noise, asked, rows, f"evaluation.suspects={path}")


def test_two_readings_by_hand(tmp_path: Path) -> None:
    # Right are 0, 1, 2. Suspects: 2 (right; the correction makes it wrong), 3 (wrong; made right), 4 (no correction).
    asked = [question(k, 0) for k in range(5)]
    items = [GOOD | {"hash": asked[k].hash, "corrected": letter} for k, letter in ((2, "C"), (3, "B"), (4, None))]
    found = sensitivity(write(tmp_path, *items, GOOD), asked, [0, 0, 0, 1, 1])
    without, corrected = found["accuracy_without_suspects"], found["accuracy_corrected_keys"]
    for metric, hits in ((without, [1, 1]), (corrected, [1, 1, 0, 1, 0])):
        expected = share_metric(metric.name, hits)
        assert (metric.value, metric.n, metric.interval) == (expected.value, len(hits), expected.interval)
    assert without.note == "3 of 5 questions are suspects; of the list, 1 are not among the questions"
    assert corrected.note == "Keys that are corrected: 2 of 5"
    # no suspects, nothing but suspects, no list
    found = sensitivity(write(tmp_path), asked, [0, 0, 0, 1, 1])
    assert {metric.value for metric in found.values()} == {3 / 5}
    found = sensitivity(write(tmp_path, *(GOOD | {"hash": q.hash} for q in asked)), asked, [0, 0, 0, 1, 1])
    assert (found["accuracy_without_suspects"].value, found["accuracy_corrected_keys"].value) == (None, 3 / 5)
    assert measured(label_noise, asked, predictions("AAAAA", "AAABB")) == {}


def test_reads_a_list_whose_corrections_fit_their_questions(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"suspects\.json cannot be read(.|\n)*A list of suspects has the shape"):
        read_noisy_labels(tmp_path / "suspects.json", ())
    ambiguous = GOOD | {"hash": HASH[::-1], "reason": "zweideutig, “mehrdeutig”", "corrected": "B"}
    assert read_noisy_labels(write(tmp_path, GOOD, ambiguous), ()) == {
        HASH: NoisyLabel(HASH, "doubtful", None),
        HASH[::-1]: NoisyLabel(HASH[::-1], "zweideutig, “mehrdeutig”", "B"),
    }
    assert read_noisy_labels(write(tmp_path), ()) == {}
    # corrections that do not fit
    asked = [question(0, 1), question(1, 0, ("yes", "no"))]
    same, none, fits = ({"hash": asked[k].hash, "corrected": letter} for k, letter in ((0, "B"), (1, "C"), (0, "A")))
    with pytest.raises(RunError, match="does not fit") as caught:
        sensitivity(write(tmp_path, GOOD | same, GOOD | none), asked, [0, 0])
    assert [problem.allowed for problem in caught.value.problems] == ["A, C, D or null", "B or null"]
    read_noisy_labels(write(tmp_path, GOOD | fits, GOOD | {"corrected": "H"}), asked)  # the second is not asked


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "version is 2"),
        ({"item": []}, r"item is not known. Did you mean 'items'\?"),
        ({"items": [GOOD, GOOD]}, f"items name a question twice: {HASH}"),
        *(({"items": [GOOD | {"hash": bad}]}, r"items\.0\.hash") for bad in ("0123", HASH.upper(), 7)),
        ({"items": [GOOD | {"reason": " "}]}, r"items\.0\.reason"),
        *(({"items": [GOOD | {"corrected": bad}]}, r"items\.0\.corrected") for bad in ("b", "AB", "A\n")),
        ({"items": [{"hash": HASH, "reason": "x"}]}, r"items\.0\.corrected is missing"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        read_noisy_labels(write(tmp_path, **fields), ())
    assert len(caught.value.problems) == 1 and '{"version": 1, "items"' in str(caught.value)
