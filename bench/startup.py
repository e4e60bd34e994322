"""Wall time of `python train.py --help`, and from process start to the end of the first optimizer step of the default
run.

The default run is `python train.py` with nothing else: the embedded model and questions; it scores the base model
first. Time is taken by a Lightning callback that Hydra adds on the command line; the run is ended there. Weights &
Biases stays offline.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

MARK = "CYBERLM_BENCH_MARK"
"""Environment variable: file that the first optimizer step's time is written to."""


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of the run (default: none)")
    options = parser.parse_args()
    if options.small:
        options.pairs, options.overrides = 2, ["model=tiny_random", "data.max_test=8", *options.overrides]
    measure.limit_threads(options.threads)
    help_text(), first_step(options.overrides)  # warm-up: files are in the disk's cache, the model is converted
    sides = {"python train.py --help": help_text, "first optimizer step": lambda: first_step(options.overrides)}
    turns = measure.interleave(sides, options.pairs, lambda text: print(text, flush=True))
    rows: list[list[object]] = [["", "seconds after process start", "goal"]]
    goals = dict(zip(sides, ("at most 2 s", "at most 15 s"), strict=True))
    rows += [[name, measure.spread(seconds), goals[name]] for name, seconds in turns.items()]
    print("\n" + measure.table(" ".join(["python train.py", *options.overrides]), rows))
    measure.write_results("startup", options.small, {"goals": goals, "overrides": options.overrides, "seconds": turns})


def help_text() -> float:
    started = time.time()
    done = subprocess.run([sys.executable, measure.ROOT / "train.py", "--help"], capture_output=True, check=True)
    seconds = time.time() - started
    if not done.stdout:
        raise measure.Disagreement("train.py --help printed nothing")
    return seconds


def first_step(overrides: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "mark.json"
        path = {"PYTHONPATH": measure.python_path(measure.BENCH)}
        environment = {**os.environ, **path, MARK: str(mark), "WANDB_MODE": "offline"}
        command = [sys.executable, str(measure.ROOT / "train.py"), "+callbacks.mark._target_=startup.first_step_mark"]
        started = time.time()
        done = subprocess.run(
            [*command, *overrides], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if not mark.is_file():
            raise RuntimeError(f"train.py ended before its first step:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return json.loads(mark.read_text()) - started


def first_step_mark() -> Any:
    """The callback, made only in the measured run."""
    import lightning.pytorch as L

    class Mark(L.Callback):
        def on_train_batch_end(self, *unused: Any) -> None:
            Path(os.environ[MARK]).write_text(json.dumps(time.time()))
            os._exit(0)

    return Mark()


if __name__ == "__main__":
    main()
