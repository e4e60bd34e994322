"""tests/golden.py finds what differs, and leaves out only what it names."""

import json
from pathlib import Path

import torch
from golden import compare, jobs
from safetensors.torch import save_file


def recording(folder: Path, accuracy: float = 0.5, seconds: float = 1.0, weight: float = 1.0) -> Path:
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "results.json").write_text(json.dumps({"scores": [accuracy], "cost": {"seconds": seconds}}))
    (folder / "run" / "predictions.jsonl").write_text(json.dumps({"id": "a\u2028b", "choice": 1}) + "\n")
    (folder / "run" / "metrics.csv").write_text("step,loss\n1,0.5\n")
    save_file({"a": torch.tensor([weight, 2.0], dtype=torch.bfloat16)}, folder / "run" / "model.safetensors")
    return folder


def test_values_and_bytes_are_compared_and_times_are_not(tmp_path: Path, capsys) -> None:
    before = recording(tmp_path / "before")
    assert compare(before, recording(tmp_path / "slower", seconds=9.0), strict=True) == 0
    assert compare(before, recording(tmp_path / "other", accuracy=0.25, weight=1.5), strict=True) == 2
    shown = capsys.readouterr().out
    assert "run/results.json: scores[0]: 0.5 -> 0.25" in shown and "run/model.safetensors: a: " in shown


def test_what_one_side_lacks_is_listed(tmp_path: Path, capsys) -> None:
    before, after = recording(tmp_path / "before"), recording(tmp_path / "after")
    (after / "run" / "metrics.csv").unlink()
    assert (compare(before, after, strict=False), compare(before, after, strict=True)) == (0, 1)
    assert "run/metrics.csv: only before" in capsys.readouterr().out


def test_names_of_jobs_are_their_own() -> None:
    names = [name for name, _ in jobs()]
    assert len(set(names)) == len(names)
