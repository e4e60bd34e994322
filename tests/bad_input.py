"""Bad input: what is typed or lies on the disk, run in this process through the real entries."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typed import type_line

ROOT = Path(__file__).parent.parent
TINY = ("model=tiny_random", "logger=none", "callbacks=none", "trainer.accelerator=cpu")
SMALL = ("data.max_train=8", "data.max_validation=4", "data.max_test=4", "evaluation.generate=false")
MOST_LINES = 60
"""Of one screen, with room for a list of bad rows."""


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        name: What is wrong, in words.
        line: What is typed: `train`, `evaluate`, `recompute` or `leaderboard`, and its arguments.
        expected: Parts of the message: the value, what is allowed, what to type.
        make: Puts the files in place, in the working directory.
        variables: Of the environment.
    """

    name: str
    line: tuple[str, ...]
    expected: tuple[str, ...]
    make: Callable[[Path], object] = field(default=lambda folder: None)
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: Exit code.
        message: On standard error.
        left: What is wrong with what it left on the disk.
    """

    code: object
    message: str
    left: tuple[str, ...]


def run(case: Case, folder: Path) -> Outcome:
    """Runs a case in `folder`, in this process, through the real entries."""
    case.make(folder)
    before = _files(folder)
    command, *arguments = case.line
    variables = {"CYBERLM_CACHE_DIR": str(folder / "cache"), "HF_HUB_OFFLINE": "1", **case.variables}
    ended = type_line(folder, command, *arguments, **variables)
    return Outcome(ended.code, ended.err, tuple(_wrongly_left(before, _files(folder), folder)))


def _files(folder: Path) -> dict[str, int]:
    """Every file below a folder, with a hash of what is in it; the cache, which may always be added to, left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith("cache/"):
            found[name] = hash(path.read_bytes())
        elif path.is_dir() and name.split("/")[0] != "cache":
            found[f"{name}/"] = 0
    found.update({str(path.relative_to(folder)): 0 for path in folder.glob("cache/**/.*")})  # half of something
    return found


OF_A_RUN = ("status.json", "train.log", ".hydra_resumed")
"""What a run that cannot be continued may change in its own folder."""


def _wrongly_left(before: dict[str, int], after: dict[str, int], folder: Path) -> Iterator[str]:
    gone = before.keys() - after.keys()
    changed = {name for name, digest in after.items() if before.get(name) != digest}
    failed = {str(Path(name).parent) for name in changed if Path(name).name == "status.json"}
    runs = failed | {str(Path(name).parent) for name in before if Path(name).name == "config.yaml"}
    for name in failed:
        state = json.loads((folder / name / "status.json").read_text())["state"]
        if state != "failed":
            yield f"{name}/status.json says {state}"
    for name in sorted(gone | changed):
        path = Path(name)
        run = next((item for item in runs if path.is_relative_to(item)), None)
        temporary = path.name.endswith((".tmp", ".part")) or path.name.startswith(".config")
        parent = any(item.startswith(name) for item in runs)
        tried = run is not None and path.relative_to(run).parts[:1] in [(item,) for item in OF_A_RUN]
        own = tried or (run in failed and name not in before)
        if (temporary or not own) and not parent:
            yield name


# ------------------------------------------------------------------------------------------ what several cases need

_MADE: dict[str, Path] = {}


def made(kind: str, *arguments: str) -> Path:
    """A finished run of a method, made once; cases get a copy."""
    if kind not in _MADE:
        folder = Path(tempfile.mkdtemp(prefix="cyberlm-bad-input-"))
        line = ("train", *TINY, *SMALL, *arguments, "hydra.run.dir=run")
        outcome = run(Case(kind, line, ()), folder)
        assert outcome.code == 0, outcome.message
        _MADE[kind] = folder
    return _MADE[kind]


def copied(kind: str, *arguments: str) -> Callable[[Path], Path]:
    def copy(folder: Path) -> Path:
        shutil.copytree(made(kind, *arguments), folder, dirs_exist_ok=True)
        return folder / "run"

    return copy


lora, sft = copied("lora", "method=lora", "method.lora.rank=2"), copied("sft", "method=sft")
other = copied("other", "method=lora", "method.lora.rank=4")


def forget() -> None:
    for folder in _MADE.values():
        shutil.rmtree(folder, ignore_errors=True)
    _MADE.clear()


def changed(make: Callable[[Path], Path], change: Callable[[Path], object]) -> Callable[[Path], None]:
    def both(folder: Path) -> None:
        change(make(folder))

    return both


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def stopped(folder: Path) -> Path:
    """A run of LoRA that a signal ended."""
    run = lora(folder)
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "stopped"}))
    return run


def checkpoint_of(make: Callable[[Path], Path]) -> Callable[[Path], None]:
    """A stopped run of LoRA with the checkpoints of another run."""

    def put(folder: Path) -> None:
        run = stopped(folder)
        shutil.rmtree(run / "checkpoints")
        shutil.copytree(make(folder / "foreign") / "checkpoints", run / "checkpoints")
        shutil.rmtree(folder / "foreign")

    return put


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, share: float = 0.5) -> Callable[[Path], None]:
    def shorten(folder: Path) -> None:
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return shorten


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        path = folder / name
        content = path.read_text()
        assert old in content, (name, old)
        path.write_text(content.replace(old, new))

    return put


def several(*changes: Callable[[Path], object]) -> Callable[[Path], None]:
    def all_of_them(folder: Path) -> None:
        for change in changes:
            change(folder)

    return all_of_them


class Bomb:
    """A pickle of this makes a file where it is opened."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("opened"),)  # type: ignore[return-value]


def pickled(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        import torch

        torch.save({"state_dict": Bomb(), "x": torch.zeros(1)}, folder / name)

    return write


def tensors(name: str, shapes: dict[str, tuple[int, ...]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, folder / name)

    return write


def model_folder(folder: Path) -> Path:
    """A whole transformers folder, `m`."""
    shutil.copytree(made("sft", "method=sft") / "run" / "model", folder / "m")
    return folder / "m"


def train(*arguments: str) -> tuple[str, ...]:
    return ("train", *TINY, *arguments)


def own(path: str, *arguments: str) -> tuple[str, ...]:
    return train("data=mcq", f"data.path={path}", *arguments)


def local(path: str) -> tuple[str, ...]:
    return ("train", "model=local", f"model.path={path}", *TINY[1:])


def evaluation(*arguments: str) -> tuple[str, ...]:
    return ("evaluate", *(arguments or ("run=run",)), "logger=none", "evaluation.generate=false")


def resumed(*arguments: str) -> tuple[str, ...]:
    return ("train", "trainer.resume=run", "logger=none", *arguments)
