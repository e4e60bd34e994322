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
        ({"scores": SCORES | {"accuracy": 0.25}}, ["run/results.json: scores.accuracy: 0.5 -> 0.25\n"]),
        ({"scores": SCORES | {"rouge": 0.0}}, ["run/results.json: scores.rouge: nothing -> 0.0\n"]),
        ({"scores": SCORES | {"n": 8.0}}, ["run/results.json: scores.n: 8 -> 8.0\n"]),
        ({"weight": 1.5}, ["run/model.safetensors: a: "]),
        ({"scores": {"accuracy": 0.5, "n": 8}}, ["run/results.json: scores.rouge: nothing -> only before\n"]),
        ({"scores": SCORES | {"f1": 1}}, ["run/results.json: scores.f1: only after -> 1\n"]),
    ],
)
def test_compare(change: dict[str, object], shown: list[str], tmp_path: Path, capsys) -> None:
    before, after = recording(tmp_path / "before"), recording(tmp_path / "after", **change)
    assert compare(before, after) == len(shown)
    out = capsys.readouterr().out
    assert all(line in out for line in shown) and "masked: cost.seconds\n" in out


def test_folders_that_are_no_recording(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no recording"):
        compare(recording(tmp_path / "before"), tmp_path / "none")
    with pytest.raises(SystemExit, match="no recording"):  # it replaces no other folder
        record(tmp_path / "before")
    names = [name for name, _ in jobs()]
    assert len(set(names)) == len(names)
