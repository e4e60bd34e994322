"""`python -m cyberlm train ...` and `python -m cyberlm evaluate ...`: the commands of train.py and evaluate.py."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from cyberlm.launch import main as launch

COMMANDS = ("train", "evaluate", "leaderboard")


def train() -> None:
    """Trains, and scores the base and the tuned model on the same questions."""

    def run(composed: DictConfig, folder: Path) -> float | None:
        from cyberlm.runs import train_from  # torch and the rest are imported only once there is work for them

        return train_from(composed, folder)

    launch("train", run)


def evaluate() -> None:
    """Scores a finished run, or a model as it is."""

    def run(composed: DictConfig, folder: Path) -> None:
        from cyberlm.runs import evaluate_from

        evaluate_from(composed, folder)

    launch("evaluate", run)


def leaderboard() -> None:
    """Ranks the jobs of a sweep's folder again, for example after the sweep itself was killed."""
    from cyberlm.sweeps import show_leaderboard

    show_leaderboard(Path(sys.argv[1]))


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        raise SystemExit(f"usage: cyberlm {{{','.join(COMMANDS)}}} [overrides]")
    command = sys.argv.pop(1)
    {"train": train, "evaluate": evaluate, "leaderboard": leaderboard}[command]()


if __name__ == "__main__":
    main()
