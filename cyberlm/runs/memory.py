"""Memory of a run: `plan=true`, the estimate before each run, and the screen of a run that is out of memory."""

import contextlib
import functools
import math
import shlex
import traceback
from collections.abc import Iterator, Mapping, Sequence

import torch
from hydra.core.hydra_config import HydraConfig
from transformers import PretrainedConfig

from cyberlm.config.schema import Protocol, TrainConfig
from cyberlm.data.batches import AnswerCollator, plan_batches
from cyberlm.data.datamodule import encode_split
from cyberlm.data.sources import load_sources
from cyberlm.data.splits import split_questions
from cyberlm.evaluation.inference import generated_tokens, scored_tokens
from cyberlm.evaluation.scoring import OPTIONS_AT_ONCE
from cyberlm.models.loading import load_tokenizer, pick_device, read_shape
from cyberlm.models.memory import (
    Batches,
    MemoryEstimate,
    ModelSizes,
    available_bytes,
    estimate_memory,
    measure_model,
    overrides_that_fit,
    published_shape,
    release_freed_memory,
    resident_bytes,
)
from cyberlm.models.prefix_cache import cacheable_tokens_of
from cyberlm.runs.run_folder import typed_overrides
from cyberlm.runtime.cache import cache_folder
from cyberlm.runtime.errors import ModelError, OutOfMemory, Problem
from cyberlm.runtime.progress import rendered, say
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.tasks.task import make_task
from cyberlm.training.fit import shares_prefix
from cyberlm.training.optim import check_optimizer

GIB = 2**30
ASSUMED_OPTIONS = 4
"""Options of a question, where the questions are out of reach."""
SHARE_ADVISED = 0.8
"""Of a host's memory, that advised overrides may take: a host's peak is estimated to within 25%."""
TOO_LARGE = "The run takes more memory than there is:"
ALLOCATION_FAILED = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")

Encoded = Mapping[str, Sequence[EncodedQuestion]]


class RunMemory:
    """Estimates for one model and its questions on one kind of device, under any configuration.

    Args:
        config: Of the run; `plan.device_memory_gib` replaces the device's free memory.
    """

    def __init__(
        self, config: TrainConfig, shape: PretrainedConfig, encoded: Encoded, end: int, device: torch.device
    ) -> None:
        self.config, self.shape, self.end, self.device = config, shape, end, device
        gib = config.plan.device_memory_gib
        self.capacity = available_bytes(device) if gib is None else round(gib * GIB)
        self.runtime = resident_bytes()
        self.sizes: dict[str, ModelSizes] = {}
        self.scored = [encoded["test"], encoded["validation"]]
        longest = sorted(encoded["train"], key=lambda item: -len(item.prompt_ids) - len(item.option_ids[item.gold]))
        self.longest = longest[: config.data.micro_batch_size]
        self.scored_batch = functools.cache(self._scored_batch)

    def estimate(self, config: TrainConfig) -> MemoryEstimate:
        """Estimates the run, or one whose batches are not larger."""
        return estimate_memory(self.measured(config), config, self.batches(config), self.device, self.runtime)

    def needed(self, config: TrainConfig) -> int:
        """Bytes of the device: of a host, what all its processes take together."""
        return self.estimate(config).total * (config.trainer.devices if self.device.type == "cpu" else 1)

    def measured(self, config: TrainConfig) -> ModelSizes:
        key = repr((config.quant, config.method, config.trainer.precision))
        if key not in self.sizes:
            self.sizes[key] = measure_model(self.shape, config, self.device)
        return self.sizes[key]

    def batches(self, config: TrainConfig) -> Batches:
        """The micro-batch of the longest questions, which comes first, and the largest scored batch."""
        questions = self.longest[: config.data.micro_batch_size]
        shared = shares_prefix(config, self.shape, questions, self.end, cacheable_tokens_of(self.shape), self.device)
        batch = AnswerCollator([0] * self.end, share_prefix=shared)((questions, 1))
        rows, width = batch.input_ids.shape
        cached, scored, scored_labels = self.scored_batch(config.data.max_batch_tokens)
        if config.evaluation.generate:
            completed = sum(generated_tokens(question, config.evaluation) for question in self.scored[0])
            cached = max(cached, min(completed, config.data.max_batch_tokens))
        return Batches(rows, width, len(batch.prefix_ids), batch.targets.numel(), scored, cached, scored_labels)

    def _scored_batch(self, max_tokens: int) -> tuple[int, int, int]:
        """`Batches.cached`, `scored` and `scored_labels`."""
        largest = (0, 0, 0)
        for questions in self.scored:
            for rows in plan_batches(list(map(scored_tokens, questions)), max_tokens):
                items = [questions[row] for row in rows]
                answers = [len(ids) for item in items for ids in item.option_ids]
                places = len(items) * max(len(item.prompt_ids) for item in items)
                options = min(OPTIONS_AT_ONCE, max(len(item.option_ids) for item in items))
                cached = options * (places + len(items) * (max(answers) - 1)) if max(answers) > 1 else places
                largest = max(largest, (cached, places, max(len(items), sum(answers) - len(answers))))
        return largest

    def verdict(self) -> tuple[bool, str]:
        """Compares the run with the device, in a sentence."""
        needed, devices = self.needed(self.config), self.config.trainer.devices
        fits = needed <= self.capacity
        where = "host memory" if self.device.type == "cpu" else "GPU"
        each = f" {'of' if self.device.type == 'cpu' else 'in each of'} {devices} processes" if devices > 1 else ""
        word = "fits" if fits else "does not fit"
        host = self.estimate(self.config).host
        besides = f" Each also holds {host / GIB:.2f} GiB of host memory." if host else ""
        return fits, f"Peak {needed / GIB:.2f} GiB{each}; {where} {self.capacity / GIB:.2f} GiB: {word}.{besides}"

    def command_that_fits(self) -> str:
        """The typed command with overrides that fit in place of what they replace; empty where none is known."""
        on_gpu = self.device.type == "cuda"
        capacity = round(self.capacity * (1 if on_gpu else SHARE_ADVISED))
        changes = overrides_that_fit(self.config, self.needed, capacity, on_gpu=on_gpu)
        typed = typed_overrides(HydraConfig.get()) if HydraConfig.initialized() else []
        replaced = {change.split("=")[0] for change in changes} | ({"quant"} if "method=qlora" in changes else set())
        kept = [item for item in typed if item.split("=")[0] not in replaced and not item.startswith("plan.")]
        return shlex.join(["python", "train.py", *kept, *changes]) if changes else ""


def show_plan(config: TrainConfig) -> None:
    """Prints what a process of a run would take, phase by phase, and whether it fits (`plan=true`).

    Where the model is out of reach, its published sizes are taken, and questions of `data.max_length` tokens. Neither
    GPUs nor processes need be there: with `plan.device_memory_gib` the run is planned on GPUs of that size.

    Raises:
        ModelError: If the model is out of reach and its sizes are not known.
    """
    try:
        shape = read_shape(config.model)
        encoded, end = _questions(config)
    except ModelError as error:
        if config.model.shape is None:
            raise
        why = error.problems[0].what if error.problems else error.title
        say(f"{why}. Planned with its published sizes, and questions of data.max_length={config.data.max_length}.")
        shape = published_shape(config.model.shape, bool(config.model.tied_embeddings))
        encoded, end = _assumed_questions(config), 1
    imagined = config.plan.device_memory_gib is not None and config.trainer.accelerator != "cpu"
    device = torch.device("cuda") if imagined else pick_device(config.trainer.accelerator)
    check_optimizer(config.optim, device)
    memory = RunMemory(config, shape, encoded, end, device)
    sizes, batches = memory.measured(config), memory.batches(config)
    prefix = f" and {batches.prefix} tokens that all share" if batches.prefix else ""
    say(f"{config.model.name}, {config.method.name}, base weights {config.quant.name.name}")
    say(f"Parameters: {sizes.parameters:,}, of them trained {sizes.trained:,} ({sizes.trained / sizes.parameters:.3%})")
    say(f"Largest micro-batch: {batches.rows} x {batches.width} tokens{prefix}, {batches.labels} of them trained on")
    say(memory.estimate(config).table(), wrap=True)
    fits, verdict = memory.verdict()
    say(verdict)
    if not fits:
        command = memory.command_that_fits()
        say(f"This fits: {command}" if command else "No change that is known here makes it fit.")
    if config.plan.device_memory_gib is None and device.type == "cpu":
        say("On a GPU of 24 GiB instead: add plan.device_memory_gib=24")


def check_memory(config: TrainConfig, encoded: Encoded, prompt: Prompt, device: torch.device) -> MemoryEstimate | None:
    """Estimates the run that is about to begin, against `plan.device_memory_gib` where that is set.

    A host out of memory stalls, or its kernel kills what it likes: there a run that does not fit is refused. On a GPU,
    where the allocation fails, and where a run is resumed, it is a warning.

    Returns:
        None, with a line that says why, where the model's blocks are not known.

    Raises:
        OutOfMemory: If a new run on a host takes more than there is.
    """
    memory = RunMemory(config, read_shape(config.model), encoded, len(prompt.end_ids), device)
    try:
        fits, verdict = memory.verdict()
    except ModelError as error:
        say(f"No memory estimate: {error.problems[0].what}; {error.problems[0].allowed} are known.")
        return None
    estimate = memory.estimate(config)
    if not fits:
        command = memory.command_that_fits()
        if device.type == "cpu" and config.trainer.resume is None:
            enough = f"plan.device_memory_gib={math.ceil(memory.needed(config) / GIB)}"
            hint = f"The estimate may be off by a quarter. To run it all the same, add {enough}"
            hint = f"{rendered(estimate.table())}\n{hint}"
            raise OutOfMemory(TOO_LARGE, [Problem(verdict, fix=command)], hint)
        say(f"Warning: memory may not suffice. {verdict}{f' This fits: {command}' if command else ''}")
    return estimate


@contextlib.contextmanager
def explain_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Turns a failed allocation into one screen: what takes the memory, and what to type so that it fits."""
    runtime = resident_bytes()
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(words in str(error).lower() for words in ALLOCATION_FAILED):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        traceback.clear_frames(error.__traceback__)  # the explanation needs what the failed run holds
    release_freed_memory()
    device = pick_device(config.trainer.accelerator)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    memory = RunMemory(config, read_shape(config.model), *_questions(config), device)
    memory.runtime = runtime
    try:
        table, (_, verdict) = memory.estimate(config).table(), memory.verdict()
    except ModelError as error:
        smaller = "smaller data.micro_batch_size or data.max_batch_tokens"
        raise OutOfMemory(TOO_LARGE, [Problem(reason, smaller), *error.problems]) from None
    memory.capacity = min(memory.capacity, memory.needed(config) - 1)  # this much did not suffice
    problems = [Problem(reason), Problem(verdict, fix=memory.command_that_fits())]
    raise OutOfMemory(TOO_LARGE, problems, rendered(table))


def _questions(config: TrainConfig) -> tuple[Encoded, int]:
    """Encoded questions by part, and the tokens that close an answer."""
    prompt = Prompt(config.prompt, load_tokenizer(config.model), make_task(config))
    split = split_questions(config.data, load_sources(config.data, prompt.task))
    return encode_split(split, prompt, config.data, cache_folder() / "tokenised")[1], len(prompt.end_ids)


def _assumed_questions(config: TrainConfig) -> Encoded:
    """Questions of `data.max_length` tokens; answers of one letter, or of `evaluation.max_new_tokens` tokens."""
    data = config.data
    answer = 1 if config.prompt.protocol is Protocol.letter else config.evaluation.max_new_tokens
    rest = (0,) * max(1, data.max_length - answer - 2)
    options = ((0,) * answer,) * ASSUMED_OPTIONS
    count = data.micro_batch_size + data.max_batch_tokens // data.max_length
    questions = [EncodedQuestion((row, *rest), options, (1,) * ASSUMED_OPTIONS, 0) for row in range(count)]
    return dict.fromkeys(("train", "validation", "test"), questions)
