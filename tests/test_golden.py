"""tests/golden.py finds each difference, and leaves out only the paths that it names."""

import json
from pathlib import Path

import pytest
import torch
from golden import compare, jobs, record
from safetensors.torch import save_file

SCORES = {"accuracy": 0.5, "rouge": None, "n": 8}


def recording(folder: Path, scores: dict[str, object] = SCORES, seconds: float = 1.0, weight: float = 1.0) -> Path:
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "results.json").write_text(json.dumps({"scores": scores, "cost": {"seconds": seconds}}))
    (folder / "run" / "predictions.jsonl").write_text(json.dumps({"id": "a\u2028b", "choice": 1}) + "\n")
    (folder / "run" / "metrics.csv").write_text("step,loss\n1,0.5\n")
    save_file({"a": torch.tensor([weight, 2.0], dtype=torch.bfloat16)}, folder / "run" / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"seconds": 9.0}, []),
        ({"scores": SCORES | {"accuracy": 0.25}}, ["run/results.json: scores.accuracy: 0.5 -> 0.25"]),
        ({"scores": SCORES | {"rouge": 0.0}}, ["run/results.json: scores.rouge: nothing -> 0.0"]),
        ({"scores": SCORES | {"n": 8.0}}, ["run/results.json: scores.n: 8 -> 8.0"]),
        ({"weight": 1.5}, ["run/model.safetensors: a: "]),
        ({"scores": {"accuracy": 0.5, "n": 8}}, []),
        ({"scores": {"n": 8}}, ["run/results.json: scores.accuracy: 0.5 -> no file of the folder holds it"]),
    ],
)
def test_compare(change: dict[str, object], shown: list[str], tmp_path: Path, capsys) -> None:
    assert compare(recording(tmp_path / "before"), recording(tmp_path / "after", **change), []) == len(shown)
    out = capsys.readouterr().out
    assert all(line in out for line in shown) and "masked: cost.seconds\n" in out


def test_moved_values(tmp_path: Path) -> None:
    before, after = recording(tmp_path / "before"), recording(tmp_path / "after", {"metrics": SCORES})
    assert (compare(before, after, []), compare(before, after, [], strict=True)) == (0, 6)
    assert compare(before, after, [r": scores\.=: scores.metrics."], strict=True) == 0


def test_missing_files(tmp_path: Path) -> None:
    before, after = recording(tmp_path / "before"), recording(tmp_path / "after")
    (after / "run" / "model.safetensors").unlink()
    assert compare(before, after, []) == 1
    with pytest.raises(SystemExit, match="holds no recording"):
        compare(before, tmp_path / "none", [])


def test_a_recording_replaces_no_other_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit, match="no recording"):
        record(tmp_path)


def test_names_of_jobs_are_their_own() -> None:
    names = [name for name, _ in jobs()]
    assert len(set(names)) == len(names)
