"""data.preview=true: questions as they would be asked, and nothing else."""

from pathlib import Path

import pytest
from support import config_of
from typed import run_python, type_line

from cyberlm.runs.preview import show_preview

ROWS = "".join(f"Which is number {k}?,A) {k},B) x{k},{'AB'[k % 2]}\n" for k in range(7))
MAPPED = ("data.columns.question=1", "data.columns.options=[2,3]", "data.columns.answer=4")


def test_five_questions_are_shown_as_they_are_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.csv").write_text(f"{ROWS}Why?,A) x,B),A\n")
    config = config_of("data=file", f"data.path={tmp_path}/q.csv", *MAPPED, "data.on_bad_row=skip")
    show_preview(config)
    shown = capsys.readouterr().out
    assert "q: option letters stripped in 7 rows" in shown
    assert "questions: 7; bad rows skipped: 1\n  row 8 (line 8): options.B is empty" in shown
    assert "Right answers: A 4, B 3" in shown and shown.count("\n--- q:") == 5
    first = shown.split("--- q:1\n")[1].split("--- q:2")[0]
    assert first == (
        f"system:    {config.prompt.system}\nuser:      Which is number 0?\n\nA) 0\nB) x0\n\nAnswer with one letter.\n"
        "assistant: A\n  compared with: B\n\n"
    )


def test_labels_are_counted_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.csv").write_text(
        "question,answer\n" + "".join(f"text {k},{['low', 'high'][k % 2]}\n" for k in range(5))
    )
    labels = ("prompt=text", "task=classification", "task.labels=[low,high]")
    show_preview(config_of("data=file", f"data.path={tmp_path}/q.csv", *labels))
    assert "Right answers: low 3, high 2\n" in capsys.readouterr().out


def test_a_preview_needs_no_torch_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text(ROWS)
    code = "import sys; from cyberlm.__main__ import run_command; run_command('train'); print('torch' in sys.modules)"
    overrides = ("prompt=letter", "data=file", "data.path=q.csv", *MAPPED, "data.preview=true")
    cache = str(tmp_path.parent / "cache")
    done = run_python(tmp_path, "-W", "ignore", "-c", code, *overrides, CYBERLM_CACHE_DIR=cache)
    assert done.returncode == 0, done.stderr
    assert "assistant: A" in done.stdout and done.stdout.endswith("False\n")
    assert [path.name for path in tmp_path.iterdir()] == ["q.csv"]


def test_jobs_that_only_show_something_are_not_ranked(tmp_path: Path) -> None:
    ended = type_line(tmp_path, "train", "-m", "seed=0", "data.preview=true", "hydra.sweep.dir=sweep")
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (tmp_path / "sweep").glob("[!.]*")) == ["0", "multirun.yaml"]
