"""Every case of the table of bad input: one screen, exit code 1, no traceback, nothing half-written."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import bad_input
import pytest
from bad_input_cases import EVALUATIONS, FILES, FOLDERS, MODELS, OVERRIDES, READING, UNFINISHED
from typed import run_python

QUICK = (
    *("truncated weights", "a folder of pickled weights", "a truncated adapter", "resuming with another seed"),
    *("a run on another base", "an adapter tuned with another prompt", "questions that were trained on"),
    "a run that is overridden",
)
SLOW = [case for case in (*MODELS, *EVALUATIONS, *UNFINISHED) if case.name not in QUICK]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=pytest.mark.slow if case in SLOW else ())
        for case in (*OVERRIDES, *FILES, *FOLDERS, *READING, *MODELS, *EVALUATIONS, *UNFINISHED)
    ],
)
def test_bad_input(case: bad_input.Case, tmp_path: Path) -> None:
    code, message, left = bad_input.run(case, tmp_path)
    assert (code, left) == (1, []), message
    assert 0 < len(message.splitlines()) <= 60 and "Traceback" not in message
    for part in case.expected:
        assert part in message
    assert not (tmp_path / "opened").exists(), "a pickle was opened"


def typed(case: bad_input.Case, folder: Path, before: Callable[[], object] | None = None) -> CompletedProcess[str]:
    own = {"CYBERLM_CACHE_DIR": str(folder / "cache"), "HOME": str(folder)}
    return run_python(folder, "-m", "cyberlm", *case.line, before=before, **own)


PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


def bound_by_permissions() -> None:
    """Root may write anywhere; without this capability the bits of a folder hold for root, too."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.parametrize("arguments", [(), ("hydra.run.dir=mine",)])
def test_folder_without_permission(arguments: tuple[str, ...], tmp_path: Path) -> None:
    closed = tmp_path / "mine" if arguments else tmp_path
    closed.mkdir(exist_ok=True)
    closed.chmod(0o555)
    case = bad_input.Case("no permission", bad_input.train(*arguments), ())
    done = typed(case, tmp_path, before=bound_by_permissions)
    closed.chmod(0o755)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "The run's folder cannot be made or written to:" in done.stderr
    assert "Permission denied" in done.stderr
    assert "hydra.run.dir=FOLDER" in done.stderr
    assert {path.name for path in tmp_path.rglob("*")} <= {"mine"}
