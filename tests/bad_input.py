"""Bad input: mistakes that are typed or lie on the disk, run in this process through the real entries."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from typed import type_line

TINY = ("model=tiny_random", "logger=none", "callbacks=none", "trainer.accelerator=cpu")
SMALL = ("data.max_train=8", "data.max_validation=4", "data.max_test=4", "evaluation.generate=false")
Change = Callable[[Path], object]


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
    make: Change = field(default=lambda folder: None)
    variables: dict[str, str] = field(default_factory=dict)


def run(case: Case, folder: Path) -> tuple[object, str, list[str]]:
    """Runs a case; returns the exit code, the message, and what the command should not have left on the disk."""
    case.make(folder)
    before = _files(folder)
    variables = {"CYBERLM_CACHE_DIR": str(folder / "cache"), **case.variables}
    ended = type_line(folder, *case.line, **variables)
    return ended.code, ended.err, list(_wrongly_left(before, _files(folder), folder))


def _files(folder: Path) -> dict[str, int]:
    """Every file below a folder with a hash of its content; of the cache, which may be added to, only half of files."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in paths if path.relative_to(folder).parts[0] != "cache" or path.name.startswith(".")]
    return {str(path.relative_to(folder)): hash(path.read_bytes()) for path in kept}


def _wrongly_left(before: dict[str, int], after: dict[str, int], folder: Path) -> Iterator[str]:
    """A run that failed may leave its folder; one that cannot go on may change its log, its status and its record."""
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    failed = [Path(name).parent for name in changed if name.endswith("status.json")]
    for run in failed:
        assert json.loads((folder / run / "status.json").read_text())["state"] == "failed"
    runs = [*failed, *(Path(name).parent for name in before if name.endswith("config.yaml"))]
    for name in sorted(changed):
        run = next((item for item in runs if Path(name).is_relative_to(item)), None)
        part = Path(name).relative_to(run).parts[0] if run else ""
        own = part in ("status.json", "train.log", ".hydra_resumed") or (run in failed and name not in before)
        if not own or name.endswith((".tmp", ".part")):
            yield name


# ------------------------------------------------------------------------------------------ what several cases need

MADE = tempfile.TemporaryDirectory(prefix="cyberlm-bad-input-")


@functools.cache
def made(*arguments: str) -> Path:
    """The folder in which a run lies that is made once; cases get a copy."""
    folder = Path(tempfile.mkdtemp(dir=MADE.name))
    ended = type_line(folder, "train", *TINY, *SMALL, *arguments, "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    return folder


def copied(*arguments: str) -> Callable[[Path], Path]:
    def copy(folder: Path) -> Path:
        shutil.copytree(made(*arguments), folder, dirs_exist_ok=True)
        return folder / "run"

    return copy


lora, sft = copied("method=lora", "method.lora.rank=2"), copied("method=sft")
other = copied("method=lora", "method.lora.rank=4")


def model_folder(folder: Path) -> Path:
    """A whole transformers folder, `m`."""
    return Path(shutil.copytree(made("method=sft") / "run" / "model", folder / "m"))


def changed(make: Callable[[Path], Path], *changes: Change) -> Change:
    """The folder that `make` makes, with changes in it."""

    def all_of_them(folder: Path) -> None:
        place = make(folder)
        for change in changes:
            change(place)

    return all_of_them


def several(*changes: Change) -> Change:
    return changed(lambda folder: folder, *changes)


def edited(name: str, edit: Callable[[bytes], bytes]) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(edit(path.read_bytes() if path.exists() else b""))

    return change


def text(name: str, content: str | bytes) -> Change:
    return edited(name, lambda _: content.encode() if isinstance(content, str) else content)


def cut(name: str, share: float = 0.5) -> Change:
    return edited(name, lambda content: content[: int(len(content) * share)])


def replaced(name: str, old: str, new: str) -> Change:
    def edit(content: bytes) -> bytes:
        assert old.encode() in content, (name, old)
        return content.replace(old.encode(), new.encode())

    return edited(name, edit)


def removed(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def stopped(folder: Path) -> Path:
    """A run of LoRA that a signal ended."""
    run = lora(folder)
    replaced("status.json", '"finished"', '"stopped"')(run)
    return run


def checkpoint_of(make: Callable[[Path], Path]) -> Change:
    """A stopped run of LoRA with the checkpoints of another run."""

    def put(folder: Path) -> None:
        run = stopped(folder)
        shutil.rmtree(run / "checkpoints")
        shutil.copytree(make(folder / "foreign") / "checkpoints", run / "checkpoints")
        shutil.rmtree(folder / "foreign")

    return put


class Bomb:
    """A pickle of this makes a file where it is opened."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("opened"),)  # type: ignore[return-value]


def pickled(name: str) -> Change:
    return lambda folder: torch.save({"state_dict": Bomb(), "x": torch.zeros(1)}, folder / name)


def tensors(name: str, shapes: dict[str, tuple[int, ...]]) -> Change:
    return lambda folder: save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, folder / name)


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
