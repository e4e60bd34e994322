"""Acceptance on a GPU in one go: eleven steps, from a matrix product to training beside TRL, in at most 570 seconds.

    python bench/gpu_accept.py                       # on a machine with a GPU
    bash gpu_kit/run.sh                              # on one without a network (make gpu-kit)
    python bench/gpu_accept.py --device cpu --small  # every step with tiny sizes, in a few minutes
    python bench/gpu_accept.py --steps 4,5

Each step is a process with a deadline of its own: one that hangs, crashes or runs out of memory takes no other with it.
Steps 1 to 8, which time nothing, run side by side (with --small one by one). For each figure a line
`PASS|FAIL|SKIP step.name value limit seconds`, and after each step the whole JSON file is written: to the folder $OUT
where that is set, else to bench/results/. What a machine cannot measure is SKIP with the reason. The exit code is 1 if
anything failed. Limits stand in `STEPS` below; --small has none for speed and memory, which say nothing at tiny sizes.
"""

import argparse
import concurrent.futures
import contextlib
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measure import BENCH, python_path

TOTAL_SECONDS = 570
SLOW = 6
"""Deadlines of --small, on a slow processor that others use too, are so many times as long, and there is no total."""
LOG_TAIL = 3000


class Limit(NamedTuple):
    """What a figure must be.

    Attributes:
        sense: `<=`, `>=`, or `told` where no limit stands.
        value: Of the real sizes.
        small: Of --small; None where it is told only.
    """

    sense: str
    value: float = 0.0
    small: float | None = None


class Step(NamedTuple):
    """A step: `MODULE.step_NUMBER` measures it.

    Attributes:
        seconds: Its deadline.
        limits: By name of the figure; one that is missing fails.
    """

    name: str
    module: str
    seconds: int
    limits: dict[str, Limit]


def _same(sense: str, value: float) -> Limit:
    """A limit that does not depend on sizes."""
    return Limit(sense, value, value)


VARIANTS = ("alone", "batch", "prefix", "checkpointing")

STEPS = {
    0: Step(
        *("hardware", "gpu_checks", 75),  # most of it for libraries that are read from the disk for the first time
        {
            "product_tflops": Limit(">=", 600.0),
            "copy_tb_a_second": Limit(">=", 2.4),
            "foreign_packages": _same("<=", 0.0),  # packages of the kit that are not taken from it
        },
    ),
    1: Step(
        *("float32", "gpu_checks", 100),
        {
            "logits": _same("<=", 1e-4),
            **{f"{what}_{variant}": _same("<=", 1e-4) for variant in VARIANTS for what in ("loss", "gradients")},
        },
    ),
    2: Step(
        *("bfloat16", "gpu_checks", 90),
        {"loss": _same("<=", 0.01), "letters_same": _same(">=", 0.98), "ties": _same("<=", 0.01)},
    ),
    3: Step(
        *("nf4", "gpu_checks", 100),
        {
            "expansion": _same("<=", 1e-6),
            "bytes_same": _same(">=", 0.999),
            "layer": _same("<=", 1e-2),
            "layer_one_row": _same("<=", 1e-2),
            "logits": _same("<=", 1e-2),
            "gradients": _same("<=", 1e-2),
        },
    ),
    4: Step(
        *("train", "gpu_runs", 130),
        {
            "layers_scored": _same(">=", 1.0),
            "parameters_off_device": _same("<=", 0.0),
            "moves_to_cpu": _same("<=", 0.0),
            "device_peak_gib": Limit(">=", 0.01, 0.01),
            "estimate_off": _same("<=", 0.15),
        },
    ),
    5: Step(
        *("evaluate", "gpu_runs", 80), {"letters_same": _same(">=", 1.0), "log_probabilities_apart": _same("<=", 1e-3)}
    ),
    6: Step(
        *("resume", "gpu_runs", 150),
        {"killed": _same(">=", 1.0), "steps_missing": _same("<=", 0.0), "losses_apart": _same("<=", 1e-3)},
    ),
    7: Step(
        *("8-bit states", "gpu_checks", 100),
        {
            "uint8": _same(">=", 1.0),
            "uint8_resumed": _same(">=", 1.0),
            "paged_resumed": Limit(">=", 1.0, 1.0),
            "memory_off": _same("<=", 0.05),
            "losses_apart": _same("<=", 1e-3),
        },
    ),
    8: Step(*("syncs", "gpu_checks", 90), {"a_step": _same("<=", 1.0)}),
    9: Step(
        *("8B shape", "gpu_runs", 240),
        {
            "lora_packed_mfu": Limit("told"),
            "lora_packed_liger_mfu": Limit(">=", 0.45),
            "lora_packed_gib": Limit("<=", 80.0),
            "lora_packed_gib_reserved": Limit("told"),
            "lora_packed_liger_gib": Limit("told"),
            "qlora_packed_mfu": Limit("told"),
            "qlora_packed_liger_mfu": Limit(">=", 0.30),
            "qlora_packed_gib": Limit("<=", 9.0),
            "qlora_packed_gib_reserved": Limit("told"),
            "qlora_packed_liger_gib": Limit("told"),
            "lora_cybermetric_32_questions_a_second": Limit("told"),
            "lora_cybermetric_32_liger_questions_a_second": Limit(">=", 100.0),
            "qlora_cybermetric_32_questions_a_second": Limit("told"),
            "qlora_cybermetric_32_liger_questions_a_second": Limit("told"),
        },
    ),
    10: Step(
        *("beside TRL", "gpu_runs", 190),
        {
            "packed_over_trl": Limit(">=", 1.5),
            "packed_over_trl_no_checkpointing": Limit(">=", 1.5),
            "packed_liger_over_trl_liger": Limit("told"),
            "cybermetric_over_trl": Limit("told"),
            "cybermetric_over_trl_no_checkpointing": Limit("told"),
            "cybermetric_over_trl_by_length": Limit("told"),
            "cybermetric_liger_over_trl_liger": Limit("told"),
        },
    ),
}

STAGES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((0,),),
    ((1,), (2,), (3,), (4, 5), (6,), (7,), (8,)),
    ((9,),),
    ((10,),),
)
"""One after the other; the chains of a stage run side by side: what is timed has the card for itself."""
BESIDE = {number for chain in STAGES[1] for number in chain}


class Report:
    """What a step has measured so far, in a file, so that a deadline leaves what came before it.

    Args:
        file: JSON.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.started = file, time.monotonic()
        self.found: dict[str, Any] = {"measured": {}, "skipped": {}, "details": {}}

    def tell(self, **values: float) -> None:
        """Figures, by name of their limit."""
        seconds = round(time.monotonic() - self.started, 1)
        self.found["measured"] |= {name: {"value": float(value), "seconds": seconds} for name, value in values.items()}
        self._write()

    def skip(self, reason: str, *names: str) -> None:
        self.found["skipped"] |= dict.fromkeys(names, reason)
        self._write()

    def detail(self, **values: Any) -> None:
        """What has no limit and is for reading."""
        self.found["details"] |= values
        self._write()

    def _write(self) -> None:
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.found))
        temporary.replace(self.file)


# ------------------------------------------------------------------------------------------------------- the steps


def main() -> None:
    options = arguments()
    if options.worker is not None:
        module = importlib.import_module(STEPS[options.worker].module)
        return getattr(module, f"step_{options.worker}")(Report(options.work / f"{options.worker}.json"), options)
    began = time.monotonic()
    body: dict[str, Any] = {
        "command": shlex.join(["python", "bench/gpu_accept.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "device": options.device,
        "small": options.small,
        "steps": {},
    }
    lock = threading.Lock()

    def chain(numbers: Sequence[int]) -> None:
        for number in [number for number in numbers if number in options.steps]:
            left = TOTAL_SECONDS - (time.monotonic() - began)
            deadline = SLOW * STEPS[number].seconds if options.small else min(STEPS[number].seconds, left)
            step = run_step(number, options, Path(work), deadline)
            with lock:
                body["steps"][str(number)] = step
                print("\n".join(step["lines"]), flush=True)
                body["seconds"] = round(time.monotonic() - began, 1)
                write(options, body)

    at_once = 1 if options.small else max(map(len, STAGES))
    with (
        tempfile.TemporaryDirectory(prefix="gpu_accept_") as work,
        concurrent.futures.ThreadPoolExecutor(at_once) as pool,
    ):
        for stage in STAGES:
            list(pool.map(chain, stage))
    states = [line.split(maxsplit=1)[0] for step in body["steps"].values() for line in step["lines"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("PASS", "FAIL", "SKIP"))
    print(f"{counts}, {body['seconds']:.0f} s: {output_file(options)}")
    raise SystemExit("FAIL" in states)


def arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="default %(default)s")
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that every step works")
    parser.add_argument("--steps", type=_numbers, default=list(STEPS), help="for example 4,5 (default: all)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if not numbers or not set(numbers) <= set(STEPS):
        raise argparse.ArgumentTypeError(f"steps are {min(STEPS)} to {max(STEPS)}, as in 4,5")
    return numbers


def output_file(options: Any) -> Path:
    folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else BENCH / "results"
    return folder / f"gpu_accept{'_small' if options.small else ''}.json"


def write(options: Any, body: dict[str, Any]) -> None:
    file = output_file(options)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(body, indent=1) + "\n")
    temporary.replace(file)


def run_step(number: int, options: Any, work: Path, deadline: float) -> dict[str, Any]:
    """Runs a step in a process group of its own, and holds what it found against the limits."""
    log, began = work / f"{number}.log", time.monotonic()
    given = ["--device", options.device, "--worker", str(number), "--work", str(work)]
    command = [sys.executable, str(Path(__file__).resolve()), *given, *(["--small"] if options.small else [])]
    environment = {**os.environ, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if number in BESIDE:
        environment.setdefault("OMP_NUM_THREADS", "2")
    wrong = ""
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=max(deadline, 0))
            wrong = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            wrong = f"its deadline of {deadline:.0f} s passed"
        with contextlib.suppress(ProcessLookupError):  # the step's own processes, too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    answer = work / f"{number}.json"
    found = json.loads(answer.read_text()) if answer.is_file() else {"measured": {}, "skipped": {}, "details": {}}
    seconds = round(time.monotonic() - began, 1)
    lines = judge(number, found, options.small, wrong, seconds)
    step = {"name": STEPS[number].name, "seconds": seconds, "deadline": deadline, **found, "lines": lines}
    return step | ({"error": wrong, "log": log.read_text()[-LOG_TAIL:]} if wrong else {})


def judge(number: int, found: dict[str, Any], small: bool, wrong: str, seconds: float) -> list[str]:
    """A line for each figure that the step has a limit for; one for the step itself where something went wrong."""
    lines = []
    for name, limit in STEPS[number].limits.items():
        bound = limit.small if small else limit.value
        told = limit.sense == "told" or bound is None
        shown = "told" if told else f"{limit.sense}{bound:g}"
        measured, skipped = found["measured"].get(name), found["skipped"].get(name)
        if measured is not None:
            value = measured["value"]
            right = value == value and (told or (value <= bound if limit.sense == "<=" else value >= bound))
            lines.append(f"{'PASS' if right else 'FAIL'} {number}.{name} {value:.4g} {shown} {measured['seconds']}")
        elif skipped is not None:
            lines.append(f"SKIP {number}.{name} - {shown} {seconds} {skipped}")
        else:
            lines.append(f"FAIL {number}.{name} - {shown} {seconds} {wrong or 'not measured'}")
    if wrong and not any(line.startswith("FAIL") for line in lines):
        lines.append(f"FAIL {number}.ended - - {seconds} {wrong}")
    return lines


if __name__ == "__main__":
    main()
