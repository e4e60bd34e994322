"""`python -m cyberlm COMMAND ...`: train and evaluate (train.py and evaluate.py too), export, chat, serve and more."""

import sys
from collections.abc import Callable
from pathlib import Path

from cyberlm.config.commands import ChatConfig, ExportConfig, ServeConfig
from cyberlm.config.schema import EvaluateConfig, TrainConfig
from cyberlm.runs.launch import main as launch
from cyberlm.runs.launch import prepare_process
from cyberlm.runtime.errors import ConfigError, UserError
from cyberlm.runtime.screens import show


def train() -> None:
    """Trains, and scores the base and the tuned model on the same questions."""

    def run(config: TrainConfig, folder: Path) -> float | None:
        if config.plan.enabled:
            from cyberlm.runs.memory import show_plan

            show_plan(config, folder)
            return None
        from cyberlm.runs.train import train  # torch and the rest are imported only once the configuration is right

        return train(config, folder)

    launch("train", TrainConfig, run)


def evaluate() -> None:
    """Scores a finished run, several models on the same questions, or a model as it is."""

    def run(config: EvaluateConfig, folder: Path) -> None:
        from cyberlm.runs.evaluate import evaluate

        evaluate(config, folder)

    launch("evaluate", EvaluateConfig, run)


def export() -> None:
    """Makes a merged model, a GGUF file or a plain adapter of a finished run."""

    def run(config: ExportConfig, _: Path) -> None:
        from cyberlm.runs.export import export

        export(config)

    _refuse_sweep("export")
    launch("export", ExportConfig, run)


def chat() -> None:
    """Answers what is typed in the terminal, by transformers' chat client."""

    def run(config: ChatConfig, _: Path) -> None:
        from cyberlm.runs.serving import chat

        chat(config)

    _refuse_sweep("chat")
    launch("chat", ChatConfig, run)


def serve() -> None:
    """Answers programs that speak OpenAI's chat completions, by vLLM's or transformers' server."""

    def run(config: ServeConfig, _: Path) -> None:
        from cyberlm.runs.serving import serve

        serve(config)

    _refuse_sweep("serve")
    launch("serve", ServeConfig, run)


def _refuse_sweep(command: str) -> None:
    if {"-m", "--multirun"} & set(sys.argv[1:]):
        raise SystemExit(show(ConfigError(f"{command} does one thing at a time: leave -m out.")))


def leaderboard() -> None:
    """Ranks the jobs of a sweep's folder again, for example after the sweep itself was killed."""
    folder = _folder("leaderboard outputs/SWEEP")
    from cyberlm.runs.leaderboard import show_leaderboard

    _call(show_leaderboard, folder)


def recompute() -> None:
    """Computes every figure of a run again from its rows, without a model."""
    folder = _folder("recompute outputs/RUN")
    from cyberlm.runs.recompute import show_recomputed

    _call(show_recomputed, folder)


def _folder(usage: str) -> Path:
    """The one argument of a command."""
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: cyberlm {usage}")
    prepare_process()
    return Path(sys.argv[1])


def _call(work: Callable[[Path], object], folder: Path) -> None:
    try:
        work(folder)
    except UserError as error:
        raise SystemExit(show(error)) from None


COMMANDS = {command.__name__: command for command in (train, evaluate, export, chat, serve, leaderboard, recompute)}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        lines = (f"  {name:<12} {command.__doc__}" for name, command in COMMANDS.items())
        raise SystemExit("\n".join(["usage: cyberlm COMMAND ..., and cyberlm COMMAND --help", *lines]))
    COMMANDS[sys.argv.pop(1)]()


if __name__ == "__main__":
    main()
