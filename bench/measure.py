"""What every measurement shares: peers in environments of their own, turns, medians, tables and JSON.

A peer is another program that does the same work. It runs in a process of its own (`Worker`), as does cyberlm's side,
and both take turns: A B A B. Only one works at a time; a ratio is taken of each pair, and the median of the pairs
counts.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
sys.path.insert(0, str(ROOT))  # this checkout's cyberlm, before one that is installed

RECORDED = ("cyberlm", "torch", "transformers", "peft", "lightning", "datasets", "bitsandbytes", "numpy")


class Disagreement(Exception):
    """The two sides did not come to the same results: their speeds cannot be compared."""


# ------------------------------------------------------------------------------------------------ the command line


def parser(doc: str | None, pairs: int = 5) -> argparse.ArgumentParser:
    """Options that every script has; `doc` is the script's docstring."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--small", action="store_true", help="a few questions: shows that the script works, no figure")
    made.add_argument("--pairs", type=int, default=pairs, help="turns of each side (default %(default)s)")
    made.add_argument("--threads", type=int, help="threads of each side (default: torch's choice)")
    return made


def limit_threads(threads: int | None) -> None:
    """Before torch is imported; workers inherit it."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)


# ------------------------------------------------------------------------------------------------------------ peers


def peer_python(peer: str, requirements: Sequence[str]) -> Path:
    """The Python of a peer's environment, made on first use.

    It sees every package of the running interpreter, each held at its version: torch is neither copied nor replaced.

    Args:
        peer: Name of its folder under the cache.
        requirements: Pinned, as pip takes them.
    """
    from cyberlm.runtime.cache import cache_folder

    folder = cache_folder() / "bench" / peer
    python = folder / "bin" / "python"
    installed = {
        re.sub(r"[-_.]+", "-", found.name).lower(): found.version
        for found in importlib.metadata.distributions()
        if found.name and found.name != "cyberlm"
    }
    held = "".join(f"{name}=={version}\n" for name, version in sorted(installed.items()))
    wanted = "\n".join([sys.executable, *requirements, held])
    marker = folder / "installed.txt"
    if marker.is_file() and marker.read_text() == wanted:
        return python
    print(f"Installing {', '.join(requirements)} into {folder} (once)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "running_interpreter.pth").write_text(sysconfig.get_path("purelib") + "\n")
    constraints = folder / "constraints.txt"
    constraints.write_text(held)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--constraint", str(constraints), *requirements], check=True)
    marker.write_text(wanted)
    return python


def versions_of(python: Path, names: Sequence[str]) -> dict[str, str]:
    """Versions of packages as another Python sees them."""
    code = "import sys, importlib.metadata as m; [print(n, m.version(n)) for n in sys.argv[1:]]"
    lines = subprocess.run([str(python), "-c", code, *names], check=True, capture_output=True, text=True).stdout
    return dict(line.split() for line in lines.splitlines())


def python_path(*first: Path) -> str:
    """PYTHONPATH of a child process: `first`, this checkout, then what the caller was given."""
    return os.pathsep.join(filter(None, [*map(str, first), str(ROOT), os.environ.get("PYTHONPATH")]))


class Channel:
    """A worker's end: orders come in, answers go out, one JSON line each. What libraries print goes to the log."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any]:
        """The next order; the process ends where no more can come."""
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        return json.loads(line)

    def reply(self, **answer: Any) -> None:
        print(json.dumps(answer), file=self._out, flush=True)


class Worker:
    """One side of a comparison, in a process that stays alive and works only when it is told to.

    Args:
        name: Of the side.
        command: What to run; it answers through a `Channel`.
    """

    def __init__(self, name: str, command: Sequence[str | Path]) -> None:
        self.name = name
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115  # closed in __exit__
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, **quiet, "PYTHONPATH": python_path()},
        )

    def send(self, order: str, **details: Any) -> None:
        """Raises RuntimeError if the worker died, with the end of its log."""
        assert self.process.stdin is not None
        try:
            print(json.dumps({"order": order, **details}), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None

    def _ended(self) -> RuntimeError:
        self.process.wait()
        tail = Path(self.log.name).read_text()[-4000:]
        return RuntimeError(f"{self.name} ended with exit code {self.process.returncode}:\n{tail}")

    def answer(self) -> dict[str, Any]:
        """Waits for the answer.

        Raises:
            RuntimeError: If the worker died, with the end of its log.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def ask(self, order: str, **details: Any) -> dict[str, Any]:
        self.send(order, **details)
        return self.answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # what a dead worker did not read
            self.process.stdin.close()
        if exception[0] is not None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


# ------------------------------------------------------------------------------------------------------------ turns


def interleave(
    sides: Mapping[str, Callable[[], Any]], pairs: int, say: Callable[[str], None] | None = None
) -> dict[str, list[Any]]:
    """Gives each side its turn, `pairs` times: A B A B. Warm-up is the caller's, before."""
    turns: dict[str, list[Any]] = {name: [] for name in sides}
    for turn in range(pairs):
        for name, work in sides.items():
            started = time.monotonic()
            turns[name].append(work())
            if say:
                say(f"turn {turn + 1}/{pairs}: {name} took {time.monotonic() - started:.1f} s")
    return turns


class Block(NamedTuple):
    """Some training steps in a row: seconds, non-padding tokens, and the loss of each step."""

    seconds: float
    tokens: int
    losses: list[float]


class Blocks:
    """Cuts a training loop into blocks of `steps` steps; `between` runs after each while the loop waits."""

    def __init__(self, steps: int, between: Callable[[Block], None]) -> None:
        self.steps, self.between = steps, between
        self.start()

    def start(self) -> None:
        self.tokens, self.losses = 0, []
        self.started = time.perf_counter()

    def step(self, tokens: int, loss: Any) -> None:
        """After each optimizer step; `loss` may be a tensor."""
        self.tokens += tokens
        self.losses.append(loss)
        if len(self.losses) == self.steps:
            losses = [float(value) for value in self.losses]  # on a GPU, this waits for the work
            self.between(Block(time.perf_counter() - self.started, self.tokens, losses))
            self.start()


class OrderedBlocks(Blocks):
    """Blocks of a training loop in a worker: each is run when it is ordered, under torch's profiler if so asked."""

    def __init__(self, channel: Channel, steps: int) -> None:
        self.channel = channel
        self.profiler: Any = None
        super().__init__(steps, self._answer)

    def start(self) -> None:
        order = self.channel.receive()
        if order.get("profile"):
            self.profiler = profiler()
            self.profiler.start()
        super().start()

    def _answer(self, block: Block) -> None:
        operations = []
        if self.profiler is not None:
            self.profiler.stop()
            operations, self.profiler = top_operations(self.profiler), None
        self.channel.reply(**block._asdict(), operations=operations)


def profiler() -> Any:
    """Of the CPU, and of the GPU where there is one."""
    from torch.profiler import profile

    return profile()


def top_operations(done: Any, count: int = 12) -> list[list[Any]]:
    """Operations by their own time, on the GPU where one worked, else on the CPU: name, share, seconds, calls."""
    events = [event for event in done.key_averages() if event.device_type.name == "CPU"]  # kernels count in their calls
    times = [event.self_device_time_total for event in events]
    if not any(times):
        times = [event.self_cpu_time_total for event in events]
    whole = sum(times)
    longest = sorted(zip(times, events, strict=True), key=lambda pair: -pair[0])[:count]
    return [[event.key, round(time / whole, 4), round(time / 1e6, 4), event.count] for time, event in longest]


def operations_table(title: str, operations: Sequence[Sequence[Any]]) -> str:
    rows = [[name, f"{share:.1%}", f"{seconds:.2f}", calls] for name, share, seconds, calls in operations]
    return table(title, [["operation", "own time", "s", "calls"], *rows])


class Ratio(NamedTuple):
    """Median of the ratios of pairs, with their range."""

    median: float
    low: float
    high: float
    pairs: list[float]

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """Ratio of each pair of turns, and their median."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each), each)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """`median (min to max)`."""
    return f"{statistics.median(values):.{digits}g} ({min(values):.{digits}g} to {max(values):.{digits}g})"


# ---------------------------------------------------------------------------------------------------------- results


def table(title: str, rows: Sequence[Sequence[object]]) -> str:
    """Plain text; the first row is the head, the first column stands left."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    lines = [title]
    for number, row in enumerate(cells):
        first, *others = (cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths)))  # noqa: B905
        lines.append("  ".join([first, *others]))
        if number == 0:
            lines.append("-" * len(lines[-1]))
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Processor, threads and versions of the running side."""
    import torch

    versions = {}
    for name in RECORDED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "commit": _commit(),
        "versions": versions,
    }


def _cpu_model() -> str:
    try:
        found = dict(re.findall(r"^(model name|flags)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M))
    except OSError:
        return platform.processor() or platform.machine()
    vector = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in found.get("flags", "").split()]
    return " ".join([found.get("model name", platform.machine()), *vector])


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return done.stdout.strip() or None


def write_results(name: str, small: bool, body: Mapping[str, Any], file: Path | None = None) -> Path:
    """bench/results/NAME.json (or `file`): the command, the machine, and `body` with every raw time."""
    if file is None:
        file = BENCH / "results" / f"{name}{'_small' if small else ''}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", f"bench/{name}.py", *sys.argv[1:]])
    whole = {"command": command, "date": time.strftime("%Y-%m-%d"), "small": small, **machine(), **body}
    file.write_text(json.dumps(whole, indent=1) + "\n")
    shown = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
    print(f"\nWritten: {shown}" + (" (--small: not a figure to quote)" if small else ""))
    return file


def agree(what: str, one: float, other: float, tolerance: float) -> None:
    """Fails loudly where two results differ by more than `tolerance` (absolute).

    Raises:
        Disagreement: With both.
    """
    if not abs(one - other) <= tolerance:
        raise Disagreement(f"{what}: {one!r} against {other!r}, more than {tolerance} apart")
