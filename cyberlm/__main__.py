"""`python -m cyberlm train ...` and `python -m cyberlm evaluate ...`: the commands of train.py and evaluate.py."""

import sys
from collections.abc import Callable
from pathlib import Path

from cyberlm.config import EvaluateConfig, TrainConfig
from cyberlm.errors import UserError
from cyberlm.launch import main as launch
from cyberlm.launch import show

COMMANDS = ("train", "evaluate", "leaderboard", "recompute")


def train() -> None:
    """Trains, and scores the base and the tuned model on the same questions."""

    def run(config: TrainConfig, folder: Path) -> float | None:
        if config.plan.enabled:
            from cyberlm.runs.planning import show_plan

            show_plan(config, folder)
            return None
        from cyberlm.runs import train  # torch and the rest are imported only once the configuration is right

        return train(config, folder)

    launch("train", TrainConfig, run)


def evaluate() -> None:
    """Scores a finished run, or a model as it is."""

    def run(config: EvaluateConfig, folder: Path) -> None:
        from cyberlm.runs import evaluate

        evaluate(config, folder)

    launch("evaluate", EvaluateConfig, run)


def leaderboard() -> None:
    """Ranks the jobs of a sweep's folder again, for example after the sweep itself was killed."""
    from cyberlm.sweeps import show_leaderboard

    _with_folder("leaderboard outputs/SWEEP", show_leaderboard)


def recompute() -> None:
    """Computes every figure of a run again from its rows, without a model."""
    from cyberlm.runs.recomputing import show_recomputed

    _with_folder("recompute outputs/RUN", show_recomputed)


def _with_folder(usage: str, call: Callable[[Path], object]) -> None:
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: cyberlm {usage}")
    try:
        call(Path(sys.argv[1]))
    except UserError as error:
        raise SystemExit(show(error)) from None


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        raise SystemExit(f"usage: cyberlm {{{','.join(COMMANDS)}}} [overrides]")
    command = sys.argv.pop(1)
    {"train": train, "evaluate": evaluate, "leaderboard": leaderboard, "recompute": recompute}[command]()


if __name__ == "__main__":
    main()
