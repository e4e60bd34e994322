"""Experiment loggers: wandb asks nothing and loses nothing, a missing package is said, metrics.csv is kept."""

import getpass
import importlib.util
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from rich.console import Console
from support import compose, config_of
from wandb_support import wandb_run

from cyberlm.config.rules import build_config
from cyberlm.config.schema import EvaluateConfig, TrainConfig
from cyberlm.evaluation.charts import Chart
from cyberlm.evaluation.results import read_results, read_status
from cyberlm.runs.train import train
from cyberlm.runtime import progress
from cyberlm.runtime.errors import ConfigError, Problem
from cyberlm.training import loggers

SMALL = ("data.max_train=8", "data.max_validation=4", "data.max_test=4")
KEY = "0123456789abcdef0123456789abcdef01234567"


class Terminal(io.StringIO):
    """A keyboard at which nobody sits: whoever asks has to be told no."""

    def isatty(self) -> bool:
        return True

    def read(self, *_: object) -> str:
        raise AssertionError("somebody is asked something")

    readline = read  # type: ignore[assignment]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[io.StringIO]:
    """wandb without a login, at a terminal; what is printed."""

    def ask(*_: object, **__: object) -> str:
        raise AssertionError("somebody is asked something")

    wandb.teardown()  # its settings are read from the environment once a process
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(getpass, "getpass", ask)
    printed = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=printed, soft_wrap=True))
    yield printed
    wandb.teardown()


def written(folder: Path) -> dict[str, object]:
    """The run in a folder, once wandb's own process has written the last of it."""
    wandb.teardown()
    return wandb_run(folder)


def test_wandb_without_a_login_is_offline(shown: io.StringIO, tmp_path: Path, capfd) -> None:
    """What sends the run later can be typed for any folder."""
    folder = tmp_path / "sweep" / "its [/b] $a; b"
    logger = loggers.wandb_logger(str(folder), "mine", group="sweep", entity="us")
    assert isinstance(logger, WandbLogger)
    assert (logger.experiment.project, logger.experiment.entity) == ("mine", "us")
    loggers.log_config([logger], {"method": {"lora": {"rank": 4}}})
    logger.log_metrics({"val/accuracy": 0.5}, step=1)
    loggers.log_results([logger], {"test/accuracy": 0.25}, [Chart("predictions", "table", ("right",), [(True,)])])
    loggers.finish([logger], succeeded=True)
    run = written(folder)
    assert (run["group"], run["name"], run["exit"]) == ("sweep", folder.name, 0)
    assert run["config"]["method"] == {"lora": {"rank": 4}}  # type: ignore[index]
    told, _, command = shown.getvalue().partition("; ")
    assert told == "wandb is offline. To send this run later: wandb login"
    assert shlex.split(command) == ["wandb", "sync", str(run["folder"])]
    assert capfd.readouterr() == ("", "")
    assert "WANDB_MODE" not in os.environ, "the next run of this process must be free to choose"


def test_a_whole_run_is_read_back_from_the_offline_file(shown: io.StringIO, tmp_path: Path) -> None:
    """Every curve by optimizer step, every chart, the table of predictions and the page."""
    folder = tmp_path / "run"
    config = config_of(*SMALL, "trainer.max_epochs=2", "evaluation.generate=true", "evaluation.max_new_tokens=2")
    target = "cyberlm.training.loggers.wandb_logger"
    config.logger = {"wandb": {"_target_": target, "save_dir": str(folder), "project": "cyberlm"}}
    train(config, folder)
    run: dict[str, Any] = written(folder)

    assert run["axes"]["train/*"] == run["axes"]["val/*"] == run["axes"]["val/accuracy"] == "trainer/global_step"
    assert (run["best"]["val/option_nll"], run["best"]["val/accuracy"]) == (["min"], ["max"])
    for name in ("loss", "gradient_norm", "learning_rate", "tokens_per_second", "peak_memory_gib"):
        assert len(run["history"][f"train/{name}"]) == 2, name
    for name in ("option_nll", "accuracy", "nll"):
        assert len(run["history"][f"val/{name}"]) == 2, name
    assert run["history"]["trainer/global_step"][:4] == [0, 0, 1, 1]

    assert run["plots"] == {
        **dict.fromkeys(("confusion_of_letters/base", "confusion_of_letters/tuned"), "wandb/confusion_matrix/v1"),
        **dict.fromkeys(("accuracy_by_topic/base", "accuracy_by_topic/tuned"), "wandb/bar/v0"),
        "reliability": "wandb/lineseries/v0",
    }
    names = [*(f"{name}_table" for name in run["plots"]), "predictions"]
    (files,) = folder.glob("wandb/offline-run-*/files")
    tables = {name: json.loads((files / run["history"][f"{name}/path"][0]).read_text()) for name in names}
    assert sum(cells[2] for cells in tables["confusion_of_letters/tuned_table"]["data"]) == 4
    assert {cells[1] for cells in tables["reliability_table"]["data"]} == {"calibrated", "base", "tuned"}
    assert {"base choice", "tuned choice", "tuned right", "tuned generated"} <= set(tables["predictions"]["columns"])
    assert len(tables["predictions"]["data"]) == 4
    assert ("report", ["report.html"]) in run["artifacts"].values()
    assert run["summary"]["test/tuned/accuracy"] == read_results(folder).metrics["tuned"]["accuracy"].value


def test_wandb_run_is_one_for_each_folder(shown: io.StringIO, tmp_path: Path) -> None:
    """A job never logs into the run of the job before it, even one that was left open; a resumed run goes on."""
    first = loggers.wandb_logger(str(tmp_path / "1"), "cyberlm")
    ids = [first.experiment.id]
    ids += [loggers.wandb_logger(str(tmp_path / name), "cyberlm").experiment.id for name in ("2", "1")]
    loggers.finish([first], succeeded=True)
    assert ids[0] == ids[2] != ids[1]
    loggers.finish([loggers.wandb_logger(str(tmp_path / "failed"), "cyberlm")], succeeded=False)
    run = written(tmp_path / "failed")
    assert (run["group"], run["name"], run["exit"]) == ("", "failed", 1)
    assert wandb.run is None


def test_wandb_that_is_disabled_stays_disabled(shown: io.StringIO, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = loggers.wandb_logger(str(tmp_path / "run"), "cyberlm")
    loggers.log_config([logger], {"seed": 0})
    loggers.finish([logger], succeeded=True)
    assert shown.getvalue() == "" and not list(tmp_path.rglob("*.wandb"))


def test_wandb_without_a_folder_of_its_own_stages_in_the_run(shown: io.StringIO, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", "/dev/null/wandb")
    logger = loggers.open_failsafe(loggers.wandb_logger(str(tmp_path / "run"), "cyberlm"))
    loggers.log_results([logger], {"test/accuracy": 0.25}, [Chart("predictions", "table", ("right",), [(True,)])])
    loggers.finish([logger], succeeded=True)
    assert "has failed" not in shown.getvalue()
    assert list((tmp_path / "run" / "wandb" / "artifacts" / "staging").iterdir())


@pytest.mark.parametrize(("key", "reason"), [("short", "WANDB_API_KEY invalid"), (KEY, "context deadline exceeded")])
def test_wandb_that_cannot_be_reached_is_offline(shown, tmp_path: Path, monkeypatch, key: str, reason: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(loggers, "WANDB_INIT_SECONDS", 2.0)
    logger = loggers.wandb_logger(str(tmp_path / "run"), "cyberlm")
    loggers.finish([logger], succeeded=True)
    first, second = shown.getvalue().splitlines()
    assert first.startswith("wandb cannot be used online (")
    assert reason in first
    assert second.endswith(f"wandb sync {written(tmp_path / 'run')['folder']}")
    assert key not in shown.getvalue()


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find, missing = importlib.util.find_spec, ("tensorboard", "mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name, *rest))
    for package, given in zip(missing, ([], ["cyberlm", f"sqlite:///{tmp_path}/mlflow.db"]), strict=True):
        with pytest.raises(ConfigError) as caught:
            getattr(loggers, f"{package}_logger")(str(tmp_path), *given)
        assert caught.value.title == f"logger={package} needs a package that is not installed:"
        assert caught.value.problems == (Problem(f"{package} is missing", fix=f"pip install 'cyberlm[{package}]'"),)


def test_metrics_of_a_resumed_run_go_on_after_the_rows_of_its_checkpoint(tmp_path: Path) -> None:
    """With a column that comes later, and a torn last line as a kill leaves it; figures of one step share a row."""
    file = tmp_path / "metrics.csv"
    first = loggers.MetricsFile(tmp_path)
    first.keep(0)
    for step, loss in enumerate((1.5, 1.25, 1.0)):
        first.log_metrics({"train/loss": loss}, step=step)
    first.log_metrics({"val/accuracy": 0.5}, step=2)
    assert first.rows == 3
    whole = file.read_bytes()
    assert whole.decode().split() == ["step,train/loss,val/accuracy", "0,1.5,", "1,1.25,", "2,1.0,0.5"]
    file.write_bytes(whole + b"3,0.")
    again = loggers.MetricsFile(tmp_path)
    again.keep(2)
    assert file.read_text().split() == ["step,train/loss", "0,1.5", "1,1.25"]
    again.log_metrics({"train/loss": 9.0}, step=2)
    later = loggers.MetricsFile(tmp_path)  # of a process that goes on within the step: the newer figure counts
    later.keep(3)
    later.log_metrics({"val/accuracy": 0.5}, step=2)
    later.log_metrics({"train/loss": 1.0}, step=2)
    assert file.read_bytes() == whole and later.rows == 3
    loggers.MetricsFile(tmp_path).keep(0)
    assert not file.exists()


class Failing(Logger):
    """Fails in one of its methods, as a logger does whose disk is full or whose server is gone."""

    name = version = "failing"
    closed = ""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self._call("__init__")

    def _call(self, method: str, *_: object, **__: object) -> None:
        if method == self.fails:
            raise OSError("no space left\non device")

    log_metrics, log_hyperparams = partialmethod(_call, "log_metrics"), partialmethod(_call, "log_hyperparams")
    save, experiment = partialmethod(_call, "save"), property(lambda self: self._call("experiment"))

    def finalize(self, status: str) -> None:
        self._call("finalize")
        self.closed = status


def test_loggers_are_told_how_the_run_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of them, also behind one that fails."""
    for succeeded, status in ((True, "success"), (False, "failed")):
        last = Failing()
        loggers.finish([Failing("finalize"), last], succeeded)
        assert last.closed == status and "Failing has failed" in capsys.readouterr().out


def test_loggers_that_fail_fail_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(*SMALL, "evaluation.generate=false")
    methods = ("__init__", "experiment", "log_hyperparams", "log_metrics", "save", "finalize")
    config.logger = {name: {"_target_": "test_loggers.Failing", "fails": name} for name in methods}
    train(config, tmp_path / "run")
    told = capsys.readouterr().out
    assert told.count("has failed (OSError: no space left). The run continues without it") == len(methods)
    status = read_status(tmp_path / "run")
    assert status is not None and status.state == "finished"


DYING = """
import psutil
from cyberlm.evaluation.charts import Chart
from cyberlm.training import loggers
logger = loggers.open_failsafe(loggers.wandb_logger("run", "cyberlm"))
logger.log_metrics({"val/accuracy": 0.5}, step=1)
for process in psutil.Process().children(recursive=True):
    process.kill()
    process.wait()
loggers.log_results([logger], {"test/accuracy": 0.25}, [Chart("predictions", "table", ("right",), [(True,)])])
loggers.finish([logger], succeeded=True)
print("finished")
"""


@pytest.mark.slow
def test_wandb_whose_process_has_died_fails_no_run(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    line = [sys.executable, "-c", DYING]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("WandbLogger has failed (") == 1 and done.stdout.endswith("finished\n")


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root can be somebody else")
@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/"])
def test_a_user_without_a_home_and_a_name(tmp_path: Path, home: str | None) -> None:
    """As in a container: a number without an entry in /etc/passwd, no home or one that cannot be written to."""
    (tmp_path / "mine").mkdir()
    os.chown(tmp_path / "mine", 12345, 12345)
    keep = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")  # reads what root alone may
    line = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", *keep, sys.executable]
    line += [str(Path(__file__).parents[2] / "train.py"), "model=tiny_random", "data.max_train=8", "data.max_test=4"]
    line += ["data.max_validation=4", "evaluation.generate=false", "prompt=letter", "hydra.run.dir=run"]
    dropped = ("HOME", "USER", "LOGNAME", "CYBERLM_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"HOME": home, "TMPDIR": str(tmp_path / "mine")} if home else {"TMPDIR": str(tmp_path / "mine")}
    done = subprocess.run(
        line, cwd=tmp_path / "mine", env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has failed" not in done.stdout and "wandb is offline" in done.stdout
    assert not (tmp_path / "mine" / "~").exists()


def test_loggers_compose() -> None:
    every = ["mlflow", "tensorboard", "wandb"]
    for typed, names in (("[]", []), ("[none,mlflow]", ["mlflow"]), ("[wandb,tensorboard,mlflow,csv]", every)):
        for command, schema in (("train", TrainConfig), ("evaluate", EvaluateConfig)):
            config = build_config(compose(f"logger={typed}", "group=mine", command=command), schema)
            assert sorted(config.logger) == names
            for name, entry in config.logger.items():
                assert callable(getattr(loggers, entry["_target_"].rpartition(".")[2]))
                assert entry.get("group", "mine") == "mine", name
                assert entry["save_dir"] == "<run folder>"
