"""`cyberlm COMMAND ...`: train and evaluate (train.py and evaluate.py too), export, chat, serve and more."""

import gc
import importlib
import sys
from pathlib import Path
from typing import Any

from cyberlm.config.bounds import AUTO
from cyberlm.config.commands import SCHEMAS
from cyberlm.runs.launch import main as launch
from cyberlm.runs.launch import prepare_process
from cyberlm.runtime.errors import ConfigError
from cyberlm.runtime.progress import exit_on_user_error, print_error
from cyberlm.runtime.world import find_world

COMMANDS = {
    "train": "Trains, and scores the base and the tuned model on the same questions.",
    "evaluate": "Scores a finished run, several models on the same questions, or a model as it is.",
    "export": "Makes a merged model, a GGUF file or a plain adapter of a finished run.",
    "chat": "Answers what is typed in the terminal, by transformers' chat client.",
    "serve": "Serves OpenAI's chat completions API, by vLLM's or transformers' server.",
    "leaderboard": "Ranks the jobs of a sweep's folder again, for example after the sweep itself was killed.",
    "recompute": "Computes every figure of a run again from its rows, without a model.",
}
FUNCTIONS = {
    "train": "train.train",
    "evaluate": "evaluate.evaluate",
    "export": "export.export",
    "chat": "serving.chat",
    "serve": "serving.serve",
    "leaderboard": "leaderboard.show_leaderboard",
    "recompute": "recompute.show_recomputed",
}
"""Function of each command, in cyberlm.runs."""
FOLDERS = {"leaderboard": "outputs/SWEEP", "recompute": "outputs/RUN"}
"""Commands that take a folder alone, without a configuration."""
HELP = {"--help", "-h"}


def run_command(command: str) -> None:
    """Reads the rest of the command line, and runs the command."""
    if command in SCHEMAS:
        in_folder = command in ("train", "evaluate")
        if not in_folder and {"-m", "--multirun"} & set(sys.argv[1:]):
            raise SystemExit(print_error(ConfigError(f"{command} does one thing at a time: leave -m out.")))

        def run(config: Any, folder: Path) -> Any:
            if not in_folder:
                return _function(FUNCTIONS[command])(config)
            if config.dry_run:
                return _function("preview.show_preview" if config.data.preview else "memory.show_plan")(config)
            if find_world() is None:
                began = config.trainer.resume in (None, AUTO)
                started = config if began else _function("resume.resumed_config")(config, folder)
                if started.trainer.devices > 1:
                    return _function("processes.start_processes")(command, started.trainer, folder)
            return _function(FUNCTIONS[command])(config, folder)

        launch(command, SCHEMAS[command], run)
        return
    usage = f"usage: cyberlm {command} {FOLDERS[command]}"
    if HELP & set(sys.argv[1:]):
        print(f"{COMMANDS[command]}\n\n{usage}")
        return
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(usage)
    prepare_process()
    with exit_on_user_error():
        _function(FUNCTIONS[command])(Path(sys.argv[1]))


def _function(name: str) -> Any:
    """A function of cyberlm.runs; torch and the rest are imported only now that the configuration is right."""
    module, _, function = name.partition(".")
    module = f"cyberlm.runs.{module}"
    if module not in sys.modules:
        importlib.import_module(module)
        gc.freeze()  # collections between a run's phases leave out what was imported
    return getattr(sys.modules[module], function)


def main() -> None:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in COMMANDS:
        run_command(sys.argv.pop(1))
        return
    lines = (f"  {name:<12} {what}" for name, what in COMMANDS.items())
    usage = "\n".join(["usage: cyberlm COMMAND ..., and cyberlm COMMAND --help", *lines])
    if word not in HELP:
        raise SystemExit(usage)
    print(usage)


if __name__ == "__main__":
    main()
