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

from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from omegaconf import OmegaConf

from cyberlm.evaluation.charts import Chart
from cyberlm.runtime import distributed
from cyberlm.runtime.cache import writable
from cyberlm.runtime.errors import ConfigError, Problem
from cyberlm.runtime.files import write_text
from cyberlm.runtime.progress import say
from cyberlm.runtime.redaction import redact, redact_values

WANDB_INIT_SECONDS = 20.0
STEP = "trainer/global_step"
"""Name of the optimizer step in what Lightning's WandbLogger logs."""
WANDB_CHARTS = {
    "bars": ("wandb/bar/v0", ("label", "value")),
    "confusion": ("wandb/confusion_matrix/v1", ("Actual", "Predicted", "nPredictions")),
    "lines": ("wandb/lineseries/v0", ("step", "lineKey", "lineVal")),
}
"""wandb's own charts by kind, with the names that they give to the columns."""
CALLED_BY_LIGHTNING = ("log_metrics", "log_hyperparams", "log_graph", "save", "after_save_checkpoint", "finalize")


def open_failsafe(logger: Logger) -> Logger:
    """Opens a logger and returns it; its failures end no run."""
    getattr(logger, "experiment", None)
    for name in CALLED_BY_LIGHTNING:
        setattr(logger, name, functools.partial(call_failsafe, logger, getattr(logger, name)))
    return logger


def call_failsafe(logger: Logger, call: Callable[..., Any], *args: Any, **named: Any) -> None:
    """Calls a logger; after a failure, which is printed, it is disabled, and the run continues."""
    if vars(logger).get("_cyberlm_disabled"):
        return
    try:
        call(*args, **named)
    except Exception as error:  # of any type: each logger has its own
        vars(logger)["_cyberlm_disabled"] = True
        report_failure(type(logger).__name__, error)


def report_failure(name: str, error: BaseException) -> None:
    """Prints why a logger is disabled."""
    reason = redact(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    say(f"{name} has failed ({reason}). The run continues without it; metrics.csv and results.json hold every figure.")


def wandb_logger(save_dir: str, project: str, group: str | None = None, entity: str | None = None) -> WandbLogger:
    """A run of its own, named after the run's folder; a resumed run keeps its id.

    Args:
        save_dir: The run's folder.
        group: Name shared by the jobs of one sweep.
    """
    import wandb

    for variable, place in {"DATA": Path(wandb.env.get_data_dir()), "CACHE": wandb.env.get_cache_dir()}.items():
        if not writable(place):
            os.environ[f"WANDB_{variable}_DIR"] = str(Path(save_dir, "wandb").absolute())
    mode = wandb.setup(wandb.Settings(silent=True)).settings.mode  # silent: without its advice
    if wandb.run is not None:  # left by a run before this one in the same process
        wandb.finish()
    settings: dict[str, Any] = {
        **{"project": project, "group": group, "entity": entity, "name": _run_name(save_dir)},
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
                return _with_axes(WandbLogger(**settings))  # opened now, so that a network that fails is known now
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            reason = str(error).partition("\n")[0]
            say(f"wandb cannot be used online ({redact(reason)}); logging offline.")
            wandb.teardown()  # else its service holds the run's id as one in use
    logger = WandbLogger(**settings, mode="offline")
    folder = Path(logger.experiment.dir).parent
    say(f"wandb is offline. To send this run later: wandb login; wandb sync {shlex.quote(str(folder))}")
    return _with_axes(logger)


def _with_axes(logger: WandbLogger) -> WandbLogger:
    """Opens a run whose curves go by optimizer step, and whose summary holds the best validation figures."""
    for name in ("train/*", "val/*"):
        logger.experiment.define_metric(name, step_metric=STEP)
    for name, best in {"val/option_nll": "min", "val/nll": "min", "val/accuracy": "max"}.items():
        logger.experiment.define_metric(name, step_metric=STEP, summary=best)
    return logger


def _run_name(save_dir: str) -> str:
    """The folder's name; of a sweep's job with the overrides that are its own, for example `3 rank=8 seed=1`."""
    folder = Path(save_dir).absolute()
    sweep = next((parent for parent in folder.parents if (parent / "multirun.yaml").is_file()), None)
    if sweep is None:
        return folder.name
    given = OverridesParser.create().parse_overrides(list(OmegaConf.load(sweep / "multirun.yaml").hydra.overrides.task))
    shared = {override.get_key_element() for override in given if not override.is_sweep_override()} | {"group"}
    typed = (str(item).partition("=") for item in OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
    own = [(key, value) for key, _, value in typed if key not in shared]
    return " ".join([folder.name, *(f"{key.rpartition('.')[2]}={value}" for key, value in own)])


def tensorboard_logger(save_dir: str) -> TensorBoardLogger:
    """Event files under the run's folder."""
    _require("tensorboard", "tensorboard")
    return TensorBoardLogger(save_dir, name="tensorboard", version="")


def mlflow_logger(save_dir: str, experiment_name: str, tracking_uri: str, group: str | None = None) -> MLFlowLogger:
    """A run in an MLflow server or file store."""
    _require("mlflow", "mlflow")
    return MLFlowLogger(
        experiment_name=experiment_name,
        run_name=_run_name(save_dir),
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
    """metrics.csv in the run's folder: a row a step, written at once; a resumed run appends to it.

    Figures logged at the step of the last row are added to that row. Of the processes of a run, the first alone writes.
    """

    name = version = ""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.file = folder / "metrics.csv"
        self.columns: list[str] = []
        self.rows = 0
        self.last: dict[str, Any] = {}

    def keep(self, rows: int) -> None:
        """Appends after the first `rows` rows; what a killed process has written after them is removed."""
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
        """Returns once the rows are on disk."""
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


def log_results(
    loggers: Sequence[Logger], metrics: Mapping[str, float], charts: Sequence[Chart], page: Path | None = None
) -> None:
    """Final figures to every logger; charts, and the page where there is one, to those that can hold them."""
    for logger in loggers:
        call_failsafe(logger, _log_results, logger, metrics, charts, page)


def _log_results(logger: Logger, metrics: Mapping[str, float], charts: Sequence[Chart], page: Path | None) -> None:
    if isinstance(logger, WandbLogger):
        logger.experiment.summary.update(dict(metrics))
        _to_wandb(logger.experiment, charts, page)
        return
    logger.log_metrics(dict(metrics))
    if isinstance(logger, TensorBoardLogger):
        for chart in charts:
            lines = [chart.columns, ["---"] * len(chart.columns), *chart.rows]
            text = "\n".join(" | ".join(str(cell).replace("|", "\\|") for cell in line) for line in lines)
            logger.experiment.add_text(chart.name, text)
    elif isinstance(logger, MLFlowLogger):
        for chart in charts:
            columns = {name: [row[k] for row in chart.rows] for k, name in enumerate(chart.columns)}
            logger.experiment.log_table(logger.run_id, columns, f"charts/{chart.name}.json")
        if page is not None:
            logger.experiment.log_artifact(logger.run_id, str(page))


def _to_wandb(run: Any, charts: Sequence[Chart], page: Path | None) -> None:
    import wandb

    for chart in charts:
        table = wandb.Table(columns=list(chart.columns), data=[list(row) for row in chart.rows])
        drawn: wandb.Table | wandb.plot.CustomChart = table
        if chart.kind in WANDB_CHARTS:
            name, fields = WANDB_CHARTS[chart.kind]
            axes = dict(zip(fields, chart.columns, strict=False))  # bars have a third column, for the reader
            drawn = wandb.plot_table(name, table, axes, {"title": chart.name, "xname": chart.columns[0]})
        run.log({chart.name: drawn})
    if page is not None:
        artifact = wandb.Artifact(f"report-{run.id}", type="report")
        artifact.add_file(str(page))
        run.log_artifact(artifact)


def finish(loggers: Sequence[Logger], succeeded: bool) -> None:
    """Closes every logger; wandb's run is marked as failed where the run failed."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            call_failsafe(logger, wandb.finish, exit_code=0 if succeeded else 1)
        else:
            call_failsafe(logger, logger.finalize, "success" if succeeded else "failed")
