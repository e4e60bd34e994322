"""Accuracy under doubt about the keys, and the file that lists the doubtful ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statistics_support import answered, calmly, predictions, question

from cyberlm.evaluation.intervals import accuracy_interval
from cyberlm.evaluation.metrics.label_noise import Suspect, check_suspects, noise_sensitivity, read_suspects
from cyberlm.runtime.errors import RunError

HASH = "0123456789abcdef"


def write(folder: Path, value: Any) -> Path:
    path = folder / "suspects.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_three_readings_by_hand() -> None:
    # Right are 0, 1, 2. Suspects: 2 (right; the correction makes it wrong), 3 (wrong; made right), 4 (no correction).
    rows = predictions("AAAAA", "AAABB")
    suspects = [
        Suspect(rows[2].hash, "two readings", "C"),
        Suspect(rows[3].hash, "key outdated", "B"),
        Suspect(rows[4].hash, "no option is right", None),
        Suspect(HASH, "of another file", "A"),
    ]
    found = noise_sensitivity(rows, suspects)
    assert found.all == accuracy_interval([1, 1, 1, 0, 0])
    assert found.without_suspects == accuracy_interval([1, 1])
    assert found.corrected_keys == accuracy_interval([1, 1, 0, 1, 0])
    assert (found.n_suspects, found.n_corrected, found.n_absent) == (3, 2, 1)
    assert noise_sensitivity(rows[::-1], suspects[::-1]) == found


def test_no_suspects_change_nothing() -> None:
    found = noise_sensitivity(predictions("ABC", "ABB"), [])
    assert found.all == found.without_suspects == found.corrected_keys
    assert (found.n_suspects, found.n_corrected, found.n_absent) == (0, 0, 0)


def test_only_suspects_leave_no_second_figure() -> None:
    rows = predictions("AB", "AA")
    found = noise_sensitivity(rows, [Suspect(row.hash, "doubtful", None) for row in rows])
    assert found.without_suspects is None
    assert found.all == found.corrected_keys


def test_clusters_and_generation() -> None:
    rows = [answered(question(i, 0), 0, parsed=parsed) for i, parsed in enumerate((0, 0, 1, -1))]
    clusters = {row.hash: i // 2 for i, row in enumerate(rows)}
    found = noise_sensitivity(rows, [Suspect(rows[2].hash, "doubtful", "B")], clusters, generated=True)
    assert found.all == accuracy_interval([1, 1, 0, 0], [0, 0, 1, 1])
    assert found.without_suspects == accuracy_interval([1, 1, 0], [0, 0, 1])
    assert found.corrected_keys == accuracy_interval([1, 1, 1, 0], [0, 0, 1, 1])


@calmly
@given(st.lists(st.tuples(st.sampled_from("ABCD"), st.booleans(), st.sampled_from(["B", "C", None])), min_size=1))
def test_each_figure_counts_its_questions(rows: list[tuple[str, bool, str | None]]) -> None:
    answers = predictions("A" * len(rows), "".join(choice for choice, _, _ in rows))
    suspects = [
        Suspect(p.hash, "doubtful", letter) for p, (_, doubted, letter) in zip(answers, rows, strict=True) if doubted
    ]
    found = noise_sensitivity(answers, suspects)
    assert found.all.n == found.corrected_keys.n == len(rows)
    assert (found.without_suspects.n if found.without_suspects else 0) + found.n_suspects == len(rows)
    assert abs(found.corrected_keys.acc - found.all.acc) <= found.n_corrected / len(rows) + 1e-12


def test_corrections_must_fit_their_questions() -> None:
    asked = [question(0, 1), question(1, 0, ("yes", "no"))]
    rows = [answered(q, 0) for q in asked]
    bad = [Suspect(asked[0].hash, "same as the key", "B"), Suspect(asked[1].hash, "no such option", "C")]
    for call in (lambda: check_suspects(bad, asked), lambda: noise_sensitivity(rows, bad)):
        with pytest.raises(RunError, match="does not fit") as caught:
            call()
        assert [problem.allowed for problem in caught.value.problems] == ["A, C, D or null", "B or null"]
    check_suspects([Suspect(asked[0].hash, "fits", "A"), Suspect(HASH, "absent", "H")], asked)


def test_reads_a_list(tmp_path: Path) -> None:
    items = [
        {"hash": HASH, "reason": "key outdated", "corrected": "B"},
        {"hash": HASH[::-1], "reason": "zweideutig, “mehrdeutig”", "corrected": None},
    ]
    assert read_suspects(write(tmp_path, {"version": 1, "items": items})) == (
        Suspect(HASH, "key outdated", "B"),
        Suspect(HASH[::-1], "zweideutig, “mehrdeutig”", None),
    )
    assert read_suspects(write(tmp_path, {"version": 1, "items": []})) == ()


GOOD = {"hash": HASH, "reason": "doubtful", "corrected": None}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "not a list of suspects"),
        ("[]", '"version": 1'),
        ({"items": []}, '"version": 1'),
        ({"version": 2, "items": []}, '"version": 1'),
        ({"version": True, "items": []}, '"version": 1'),
        ({"version": 1}, "items is missing"),
        ({"version": 1, "items": {}}, "items is missing or no list"),
        ({"version": 1, "items": [], "item": []}, "Did you mean 'items'"),
        ({"version": 1, "items": ["x"]}, r'items\[0\]: it is "x"'),
        ({"version": 1, "items": [GOOD, GOOD]}, r"items\[1\]: 0123456789abcdef stands in the list twice"),
        ({"version": 1, "items": [GOOD | {"hash": "0123"}]}, 'hash is "0123"'),
        ({"version": 1, "items": [GOOD | {"hash": HASH.upper()}]}, "hexadecimal digits, small letters"),
        ({"version": 1, "items": [GOOD | {"hash": 7}]}, "hash is 7"),
        ({"version": 1, "items": [GOOD | {"reason": " "}]}, "reason is"),
        ({"version": 1, "items": [GOOD | {"corrected": "b"}]}, 'corrected is "b"'),
        ({"version": 1, "items": [GOOD | {"corrected": "AB"}]}, 'corrected is "AB"'),
        ({"version": 1, "items": [GOOD | {"corrected": ""}]}, 'corrected is ""'),
        ({"version": 1, "items": [GOOD | {"corrected": 1}]}, "corrected is 1"),
        ({"version": 1, "items": [GOOD | {"resaon": "x"}]}, "Did you mean 'reason'"),
        ({"version": 1, "items": [{"hash": HASH, "reason": "x"}]}, "corrected is missing"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(RunError, match=message):
        read_suspects(write(tmp_path, value))


def test_all_problems_are_listed(tmp_path: Path) -> None:
    items = [GOOD | {"hash": "x", "corrected": "Z"}, {"reason": ""}]
    with pytest.raises(RunError) as caught:
        read_suspects(write(tmp_path, {"version": 1, "items": items}))
    assert len(caught.value.problems) == 5
    assert '{"version": 1, "items"' in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No such file"):
        read_suspects(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"version": 1, "items": [{"reason": "\xe9"}]}')
    with pytest.raises(RunError, match="not a list of suspects"):
        read_suspects(tmp_path / "latin.json")
