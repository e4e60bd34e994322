"""Pages of runs, evaluations and sweeps: report.html in their folders."""

import contextlib
import functools
import itertools
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from platformdirs import user_cache_path

from cyberlm.config.commands import SCHEMAS, register_schemas
from cyberlm.config.compose import compose_config
from cyberlm.config.rules import read_config
from cyberlm.config.saved import flat_config
from cyberlm.config.schema import RootConfig, TrainConfig
from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.predictions import Predictions
from cyberlm.evaluation.records import Results
from cyberlm.runs.run_folder import recorded_overrides, register_resolvers
from cyberlm.runtime.cache import cache_folder, writable
from cyberlm.runtime.files import write_text
from cyberlm.runtime.progress import say
from cyberlm.runtime.redaction import redact

REPORT = "report.html"
FOLDER_OVERRIDES = (
    "hydra.run.dir=",
    "hydra.sweep.dir=",
    "hydra.mode=",
    "hydra.output_subdir=",
    "group=",
    "trainer.resume=",
)
"""Overrides that a repeated run does not need."""


def write_run_page(folder: Path, results: Results, eval_set: EvalSet, models: Mapping[str, Predictions]) -> None:
    """Writes report.html into the folder of a run or an evaluation.

    Args:
        models: By name; empty where no test question was answered.
    """
    with _report_failure(folder, f"python -m cyberlm recompute {folder}"):
        from cyberlm.evaluation.pages.learning_curves import read_curves  # here: they import matplotlib, or torch
        from cyberlm.evaluation.pages.run_page import Origin, run_page

        origin = Origin(
            folder.name, command_of(folder, results), changed_settings(eval_set.config), read_curves(folder)
        )
        write_text(folder / REPORT, run_page(results, eval_set, models, origin))


def write_sweep_page(
    folder: Path, rows: Sequence[Mapping[str, str]], swept: Sequence[str], ranked_by: str | None
) -> None:
    """Writes report.html into the folder of a sweep."""
    with _report_failure(folder, f"python -m cyberlm leaderboard {folder}"):
        from cyberlm.evaluation.pages.sweep_page import Sweep, sweep_page  # here: it imports matplotlib

        pages = {row["job"]: f"{row['job']}/{REPORT}" for row in rows}
        links = {job: page for job, page in pages.items() if (folder / page).is_file()}
        write_text(
            folder / REPORT, sweep_page(Sweep(folder.name, rows, swept, ranked_by, links, _sweep_command(folder)))
        )


@contextlib.contextmanager
def _report_failure(folder: Path, again: str) -> Iterator[None]:
    """Prints that a page could not be written, whatever the reason: the results are in their own files."""
    if not writable(user_cache_path("matplotlib")):  # where it keeps its list of fonts
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
    try:
        yield
    except Exception as error:
        reason = redact(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        say(f"{folder / REPORT} was not written ({reason}). Every figure is in the other files; to try again:")
        say(again)


def command_of(folder: Path, results: Results) -> str:
    """The command that repeats a run, as first typed."""
    typed = shlex.split(results.provenance.get("command", ""))
    script = f"{results.kind}.py"
    start = f"python {script}" if typed[:1] == [script] else f"python -m cyberlm {results.kind}"
    flags = list(itertools.dropwhile(lambda word: not word.startswith("-"), typed[1:]))  # with their values: last
    overrides = recorded_overrides(folder)
    if overrides is None:  # else they are those of the run's beginning, where it was resumed
        overrides = typed[1 : len(typed) - len(flags)]
    kept = [word for word in (*overrides, *flags) if not word.startswith(FOLDER_OVERRIDES)]
    return redact(" ".join([start, *map(shlex.quote, kept)]))


def _sweep_command(folder: Path) -> str:
    """The command that repeats a sweep, as far as Hydra has recorded it."""
    record = folder / "multirun.yaml"
    kept = yaml.safe_load(record.read_text("utf-8")) if record.is_file() else None
    if not kept:
        return f"The command was not kept: {record.name} is missing or empty."
    typed = [*kept["hydra"]["overrides"]["hydra"], *kept["hydra"]["overrides"]["task"]]
    again = [shlex.quote(item) for item in typed if not item.startswith(FOLDER_OVERRIDES)]
    return redact(" ".join([f"python -m cyberlm {kept['hydra']['job']['name']} -m", *again]))


def changed_settings(config: RootConfig) -> list[tuple[str, str, str]]:
    """Settings that are not the defaults of the command: key, value, default, as JSON; without secrets."""
    here = flat_config(config)
    defaults = _default_settings("train" if isinstance(config, TrainConfig) else "evaluate")
    return [
        (key, redact(here.get(key, "-")), defaults.get(key, "-"))
        for key in sorted({*here, *defaults})
        if here.get(key) != defaults.get(key)
    ]


@functools.cache
def _default_settings(command: str) -> dict[str, str]:
    """`flat_config` of a command without overrides."""
    register_schemas()
    register_resolvers()
    return flat_config(read_config(compose_config(command), SCHEMAS[command]))
