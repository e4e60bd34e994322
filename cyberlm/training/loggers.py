"""Experiment loggers. wandb never asks a question: it is online where a login exists, and offline elsewhere."""

import csv
import functools
import hashlib
import importlib.util
import io
import os
import shlex
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from cyberlm.runtime import distributed
from cyberlm.runtime.cache import writable
from cyberlm.runtime.errors import ConfigError, Problem
from cyberlm.runtime.files import write_text
from cyberlm.runtime.progress import say
from cyberlm.runtime.redaction import redact, redact_values

WANDB_INIT_SECONDS = 20.0
CALLED_BY_LIGHTNING = ("log_metrics", "log_hyperparams", "log_graph", "save", "after_save_checkpoint", "finalize")


def lenient(logger: Logger) -> Logger:
    """Opens a logger and returns it; from here on its failures, whoever calls it, end nothing."""
    getattr(logger, "experiment", None)
    for name in CALLED_BY_LIGHTNING:
        setattr(logger, name, functools.partial(attempt, logger, getattr(logger, name)))
    return logger


def attempt(logger: Logger, call: Callable[..., Any], *args: Any, **named: Any) -> None:
    """Calls; a failure is said, and the logger is left aside from then on: the run itself goes on."""
    if vars(logger).get("left_aside"):
        return
    try:
        call(*args, **named)
    except Exception as error:  # of any type: each logger has its own
        vars(logger)["left_aside"] = True
        say_left_aside(type(logger).__name__, error)


def say_left_aside(name: str, error: BaseException) -> None:
    reason = redact(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    say(f"{name} has failed ({reason}). The run goes on without it; metrics.csv and results.json hold every figure.")


def wandb_logger(save_dir: str, project: str, group: str | None = None, entity: str | None = None) -> WandbLogger:
    """A run of its own, named after the run's folder; a resumed run goes on under the same id.

    Args:
        save_dir: The run's folder.
        group: Name shared by the jobs of one sweep.
    """
    import wandb

    for variable, place in {"DATA": Path(wandb.env.get_data_dir()), "CACHE": wandb.env.get_cache_dir()}.items():
        if not writable(place):
            os.environ[f"WANDB_{variable}_DIR"] = str(Path(save_dir, "wandb").absolute())
    mode = wandb.setup(wandb.Settings(silent=True)).settings.mode  # silent: its advice would break up the screen
    if wandb.run is not None:  # left by a run before this one in the same process
        wandb.finish()
    settings: dict[str, Any] = {
        **{"project": project, "group": group, "entity": entity, "name": _run_name(save_dir, group)},
        "id": hashlib.sha256(str(Path(save_dir).resolve()).encode()).hexdigest()[:12],
        **{"save_dir": save_dir, "log_model": False, "resume": "allow"},
        "settings": wandb.Settings(  # wandb would keep the command line and the repository's address, with any secret
            init_timeout=WANDB_INIT_SECONDS,
            console="off",
            silent=True,
            x_disable_meta=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
        ),
    }
    if mode == "disabled":
        return WandbLogger(**settings, mode="disabled")
    if mode == "online":
        try:
            if wandb.login(prompt=False, verify=False):
                logger = WandbLogger(**settings)
                _ = logger.experiment  # opened now, so that a network that fails is known now
                return logger
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            reason = str(error).partition("\n")[0]
            say(f"wandb cannot be used online ({redact(reason)}); logging offline.")
            wandb.teardown()  # else its service holds the run's id as one in use
    logger = WandbLogger(**settings, mode="offline")
    folder = Path(logger.experiment.dir).parent
    say(f"wandb is offline. To send this run later: wandb login; wandb sync {shlex.quote(str(folder))}")
    return logger


def _run_name(save_dir: str, group: str | None) -> str:
    folder = Path(save_dir)
    return f"{group}/{folder.name}" if group else folder.name


def tensorboard_logger(save_dir: str) -> TensorBoardLogger:
    """Event files under the run's folder."""
    _require("tensorboard", "tensorboard")
    return TensorBoardLogger(save_dir, name="tensorboard", version="")


def mlflow_logger(save_dir: str, experiment_name: str, tracking_uri: str, group: str | None = None) -> MLFlowLogger:
    """A run in an MLflow server or file store."""
    _require("mlflow", "mlflow")
    return MLFlowLogger(
        experiment_name=experiment_name,
        run_name=_run_name(save_dir, group),
        tracking_uri=tracking_uri,
        tags={"sweep": group} if group else None,
        log_model=False,
    )


def _require(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"logger={extra} needs a package that is not installed:",
            [Problem(f"{package} is missing", fix=f"pip install 'cyberlm[{extra}]'")],
        )


class MetricsFile(Logger):
    """metrics.csv in the run's folder: a row a step, written at once; a resumed run goes on in the same file.

    Figures logged at the step of the last row are added to that row. Of the processes of a run, the first alone writes.

    Args:
        folder: Of the run.
    """

    name = version = ""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.file = folder / "metrics.csv"
        self.columns: list[str] = []
        self.rows = 0
        self.last: dict[str, Any] = {}

    def keep(self, rows: int) -> None:
        """Goes on after the first `rows` rows; what a killed process has written after them is taken out."""
        if distributed.rank():
            return
        kept = [{name: value for name, value in row.items() if value} for row in self._read()[:rows]]
        self.rows, self.last = len(kept), dict(kept[-1]) if kept else {}
        self._rewrite(kept, set().union(*kept))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if distributed.rank():
            return
        row: dict[str, Any] = {**metrics, "step": self.rows if step is None else step}
        same = str(row["step"]) == str(self.last.get("step"))
        if same:
            row = self.last | row
        if not row.keys() <= set(self.columns):
            self._rewrite(self._read(), row.keys() | set(self.columns))
        with self.file.open("r+b") as stream:  # the new line over the last, in one write: a kill leaves either
            stream.seek(-len(self._line(self.last)) if same else 0, os.SEEK_END)
            stream.write(self._line(row))
            stream.truncate()
        self.rows, self.last = self.rows + (not same), row

    def _line(self, row: Mapping[str, Any]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns).writerow(row)
        return text.getvalue().encode()

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    def sync(self) -> None:
        """Returns once the rows would last through a power cut."""
        if self.file.is_file():
            with self.file.open("rb") as stream:
                os.fsync(stream.fileno())

    def _read(self) -> list[dict[str, str]]:
        if not self.file.is_file():
            return []
        with self.file.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))

    def _rewrite(self, rows: Sequence[Mapping[str, str]], columns: Set[str]) -> None:
        self.columns = sorted(columns)
        if not columns:
            self.file.unlink(missing_ok=True)
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.file, text.getvalue())


def log_config(loggers: Sequence[Logger], config: Mapping[str, Any]) -> None:
    """Sends the resolved configuration to every logger, without secrets."""
    for logger in loggers:
        logger.log_hyperparams(redact_values(config))


def log_results(loggers: Sequence[Logger], metrics: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> None:
    """Final figures to every logger, and a table of sample predictions to wandb."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            attempt(logger, _wandb_results, logger, metrics, rows)
        else:
            logger.log_metrics(dict(metrics))


def _wandb_results(logger: WandbLogger, metrics: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> None:
    import wandb

    run = logger.experiment
    run.summary.update(dict(metrics))
    if rows:
        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        run.log({"predictions": table})


def finish(loggers: Sequence[Logger], succeeded: bool) -> None:
    """Closes every logger; wandb's run is marked as failed where the run failed."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            attempt(logger, wandb.finish, exit_code=0 if succeeded else 1)
        else:
            attempt(logger, logger.finalize, "success" if succeeded else "failed")
