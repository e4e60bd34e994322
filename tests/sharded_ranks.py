"""One of several processes that train together, sharded models unless a case says auto: `torchrun sharded_ranks.py`.

The first argument is a FOLDER: cases.json holds cases by name; what came of each is in FOLDER/NAME. With a model's
folder as second argument, the memory that each process takes is measured.
"""

import contextlib
import json
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from support import SHORT, config_of, short_questions
from training_support import with_callback

from cyberlm.evaluation.inference import predict
from cyberlm.evaluation.scoring import eval_mode, next_logits
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import load_tokenizer
from cyberlm.models.memory import release_freed_memory
from cyberlm.models.methods.method import attach, load_for_training, method_of, saved_folder
from cyberlm.models.saving import save_tuned, try_saving
from cyberlm.runtime import distributed
from cyberlm.tasks.prompts import Prompt
from cyberlm.tasks.task import make_task
from cyberlm.training.callbacks.meters import CostMeter
from cyberlm.training.fit import fit

CPU = torch.device("cpu")
QUESTIONS = short_questions(33)
"""Odd, and in micro-batches of 4 no multiple of two or three processes: the last step has one without a question."""
COMMON = [
    *("trainer.max_epochs=2", "optim.learning_rate=1e-3", "data.micro_batch_size=4", *SHORT),
    *("trainer.checkpoint_every_n_steps=1", "evaluation.max_new_tokens=4"),
]


def trained(overrides: Sequence[str], stopped_at: int | None, resumed: bool, folder: Path) -> None:
    """Trains and answers as a run does; writes logits of the base, answers, tokens and the tuned model into `folder`.

    Args:
        stopped_at: Micro-batch before which training ends by an error.
        resumed: Goes on with what is in the folder.
    """
    config = config_of(*COMMON, *overrides)
    method, prompt = method_of(config.method), Prompt(config.prompt, load_tokenizer(config.model), make_task(config))
    torch.manual_seed(config.seed)
    loaded = attach(load_for_training(config, CPU), config)
    encoded, meter = prompt.encode(QUESTIONS), CostMeter()
    saves = loaded.sharded or distributed.rank() == 0
    if not resumed:
        with eval_mode(loaded.model):
            logits = loaded.within(next_logits, loaded, [item.prompt_ids for item in encoded])
        if saves:
            try_saving(method, loaded, prompt.tokenizer, prompt.identity(), folder)
        if distributed.rank() == 0:
            save_file({"logits": logits}, folder / "logits.safetensors")
    if stopped_at is not None:
        config = with_callback(config, "Fail", batch=stopped_at)
    config.trainer.resume = str(folder) if resumed else None
    with contextlib.suppress(ConnectionAbortedError):
        fit(config, folder, loaded, prompt, {"train": encoded, "validation": encoded}, [], meter)
        if saves:
            save_tuned(method, loaded, prompt.tokenizer, prompt.identity(), saved_folder(config.method, folder))
        answers = predict(loaded, prompt, QUESTIONS, encoded, config.evaluation, 512, "it")
        if distributed.rank() == 0:
            (folder / "answers.json").write_text(json.dumps([asdict(answer) for answer in answers]))
            (folder / "tokens.json").write_text(json.dumps([meter.nonpadding, meter.label]))


# -------------------------------------------------------------------------------------------------- memory


class Peak:
    """The most memory that this process holds of its own (files that are mapped do not count), above the beginning."""

    def __init__(self) -> None:
        self.base, self.bytes = self.now(), 0
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, self.now() - self.base)
            time.sleep(0.005)

    @contextlib.contextmanager
    def phase(self, name: str, found: dict[str, int]) -> Iterator[None]:
        self.bytes = 0
        yield
        time.sleep(0.02)
        found[name], found[f"after {name}"] = self.bytes, self.now() - self.base


def measured(folder: Path, *overrides: str) -> dict[str, int]:
    """Bytes above those of the libraries: the most in each phase of a run, and what is left behind it."""
    found: dict[str, int] = {}
    folder.mkdir(exist_ok=True)
    short = ("trainer.max_steps=1", "evaluation.max_new_tokens=2", "data.max_batch_tokens=512")
    config = config_of(*COMMON, *short, *overrides)
    method, prompt = method_of(config.method), Prompt(config.prompt, load_tokenizer(config.model), make_task(config))
    encoded = prompt.encode(QUESTIONS)
    parts = {"train": encoded, "validation": encoded[:4]}

    def score(loaded: LoadedModel) -> None:
        predict(loaded, prompt, QUESTIONS[:4], encoded[:4], config.evaluation, 512, "it")

    release_freed_memory()
    peak = Peak()
    with peak.phase("load", found):
        loaded = attach(load_for_training(config, CPU), config)
    with peak.phase("score", found):
        score(loaded)
    with peak.phase("train", found):
        fit(config, folder, loaded, prompt, parts, [], CostMeter())
    with peak.phase("save", found):
        save_tuned(method, loaded, prompt.tokenizer, prompt.identity(), saved_folder(config.method, folder))
    with peak.phase("end", found):
        score(loaded)
    return found


def main(folder: Path, *models: str) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    devices = f"trainer.devices={dist.get_world_size()}"
    for name, (overrides, stopped_at, resumed) in json.loads((folder / "cases.json").read_text()).items():
        (folder / name).mkdir(exist_ok=True)
        if models:
            measured(folder / name / "warm", devices, *overrides)  # libraries load what they need
            found = measured(folder / name, devices, *overrides, "model=local", f"model.path={models[0]}")
            (folder / name / f"memory_{dist.get_rank()}.json").write_text(json.dumps(found))
        else:
            trained([devices, "trainer.strategy=fsdp2", *overrides], stopped_at, resumed, folder / name)
        dist.barrier()
    dist.destroy_process_group()
