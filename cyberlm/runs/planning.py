"""Memory before, during and after: `plan=true`, the prediction of every run, and the screen of one that ran out."""

import contextlib
import shlex
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from transformers import PretrainedConfig

from cyberlm.config.schema import DataConfig, Protocol, TrainConfig
from cyberlm.data.batches import AnswerCollator, plan_batches, plan_epoch
from cyberlm.data.datamodule import encode_questions, scored_length
from cyberlm.data.sources import load_sources
from cyberlm.data.splits import split_questions
from cyberlm.evaluation.inference import generated_tokens, scored_tokens
from cyberlm.evaluation.results import write_status
from cyberlm.models.loading import load_tokenizer, pick_device, read_shape
from cyberlm.models.meta_model import published_shape
from cyberlm.models.prefix_cache import cache_reach, shared_length
from cyberlm.planning.activations import MicroBatch
from cyberlm.planning.footprint import CUDA_CONTEXT, GenerationBatch, ScoringBatch, Workload
from cyberlm.planning.machine import give_back, gpu_bytes, host_bytes, resident_bytes
from cyberlm.planning.network import NotPlanned
from cyberlm.planning.plans import GIB, Device, Plan, Planner, describe_batches, plan_table, verdict
from cyberlm.planning.remedies import find_fit
from cyberlm.runs.run_folder import typed_overrides
from cyberlm.runtime.cache import cache_folder
from cyberlm.runtime.errors import ModelError, OutOfMemory, Problem
from cyberlm.runtime.progress import rendered, say
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.training.fit import shares_prefix
from cyberlm.training.optim import check_optimizer

EPOCHS_LOOKED_AT = 3
"""Each epoch lays questions out in batches anew; the longest question is in all of them."""
ASSUMED_OPTIONS = 4
"""Of a question, where the questions are not at hand."""
SHARE_ADVISED = 0.85
"""Of a host's memory, that a change may take to be advised: a host's peak is known to within 15%."""
ALLOCATION_FAILED = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")

Encoded = Mapping[str, Sequence[EncodedQuestion]]


def show_plan(config: TrainConfig, folder: Path) -> None:
    """Prints what a run would take, phase by phase, and whether it fits.

    Where the model is out of reach, its published sizes are taken, and questions of `data.max_length` tokens.

    Raises:
        ModelError: If the model is out of reach and its sizes are not known.
    """
    try:
        shape = read_shape(config.model)
    except ModelError as error:
        if config.model.shape is None:
            raise
        why = error.problems[0].what if error.problems else error.title
        say(f"{why}. Planned with its published sizes, and questions of data.max_length={config.data.max_length}.")
        shape = published_shape(config.model.shape, bool(config.model.tied_embeddings))
        encoded, end = None, 1
    else:
        encoded, prompt = _questions(config)
        end = len(prompt.end_ids)
    device = _named_device(config) or _device(_own_device(config), resident_bytes())
    planner = Planner(shape, device)
    plan = planner.plan(config, _work(config, shape, encoded, end))
    say(f"{config.model.name}, {config.method.name}, base weights {config.quant.name.name}, {device.name}")
    share = plan.network.trainable / plan.network.parameters
    say(f"Parameters: {plan.network.parameters:,}, of them trained {plan.network.trainable:,} ({share:.3%})")
    say(f"Largest micro-batch: {describe_batches(plan)}")
    say(plan_table(plan), wrap=True)
    say(verdict(plan))
    if not plan.fits:
        changes = _changes_that_fit(config, planner, encoded, end)
        say(f"This fits: {_command(changes)}" if changes else "No change that is known here makes it fit.")
    if config.group is not None:  # a job of a sweep, whose parent waits for its state
        write_status(folder, "finished")


def foresee(config: TrainConfig, encoded: Encoded, prompt: Prompt, device: torch.device) -> Plan | None:
    """What the run that is about to begin will take; one line of warning where that is more than there is.

    None, and a line that says why, where the model's blocks are not known.
    """
    shape, end = read_shape(config.model), len(prompt.end_ids)
    place = _device(device, resident_bytes())
    if config.plan.device_memory_gib is not None:
        place = replace(place, capacity=int(config.plan.device_memory_gib * GIB))
    planner = Planner(shape, place)
    try:
        plan = planner.plan(config, _work(config, shape, encoded, end))
    except NotPlanned as error:
        say(f"No memory plan: {error.problems[0].what}, and what these keep is not known.")
        return None
    if not plan.fits:
        changes = _changes_that_fit(config, planner, encoded, end)
        advice = f" This fits: {_command(changes)}" if changes else ""
        say(f"Warning: memory may not suffice. {verdict(plan)}{advice}")
    return plan


@contextlib.contextmanager
def explained(config: TrainConfig) -> Iterator[None]:
    """Turns a failed allocation into one screen: what takes the memory, and what to type so that it fits.

    Raises:
        OutOfMemory: In place of what torch or Python raised.
    """
    runtime = resident_bytes()
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        traceback.clear_frames(error.__traceback__)  # what the failed run holds is needed for its explanation
    raise _out_of_memory(config, reason, runtime)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error).lower() for words in ALLOCATION_FAILED)


def _out_of_memory(config: TrainConfig, reason: str, runtime: int) -> OutOfMemory:
    give_back()
    device = pick_device(config.trainer.accelerator)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    shape = read_shape(config.model)
    encoded, prompt = _questions(config)
    end = len(prompt.end_ids)
    place = _device(device, runtime)
    try:
        plan = Planner(shape, place).plan(config, _work(config, shape, encoded, end))
    except NotPlanned as error:
        smaller = "smaller data.micro_batch_size or data.max_batch_tokens"
        return OutOfMemory(
            "The run takes more memory than there is:", [Problem(reason[:200], smaller), *error.problems]
        )
    less = replace(place, capacity=min(place.capacity, plan.peak - 1))  # this much did not suffice
    changes = _changes_that_fit(config, Planner(shape, less), encoded, end)
    return OutOfMemory(
        "The run takes more memory than there is:",
        [Problem(reason[:200]), Problem(verdict(plan), fix=_command(changes) if changes else "")],
        rendered(plan_table(plan), width=80),
    )


# ------------------------------------------------------------------------------------------------------- the device


def _named_device(config: TrainConfig) -> Device | None:
    """A device of `plan.device_memory_gib`: a GPU, unless trainer.accelerator=cpu."""
    gib = config.plan.device_memory_gib
    if gib is None:
        return None
    if config.trainer.accelerator == "cpu":
        return Device("host memory", torch.device("cpu"), int(gib * GIB), resident_bytes())
    return Device("GPU", torch.device("cuda"), int(gib * GIB))


def _own_device(config: TrainConfig) -> torch.device:
    device = pick_device(config.trainer.accelerator)
    check_optimizer(config.optim, device)
    return device


def _device(device: torch.device, runtime: int) -> Device:
    if device.type == "cuda":
        return Device(torch.cuda.get_device_name(device), device, gpu_bytes(device) + CUDA_CONTEXT)
    return Device("host memory", device, host_bytes(), runtime)


# ------------------------------------------------------------------------------------------------------ the batches


def _questions(config: TrainConfig) -> tuple[Encoded, Prompt]:
    prompt = Prompt(config.prompt, load_tokenizer(config.model))
    main, held_out = load_sources(config.data)
    parts = split_questions(config.data, main, held_out).parts()
    cache = cache_folder() / "tokenised"
    return {n: encode_questions(part, prompt, config.data.max_length, cache) for n, part in parts.items()}, prompt


def _work(config: TrainConfig, shape: PretrainedConfig, encoded: Encoded | None, end: int) -> Workload:
    """Every batch of the run: of its questions, or of questions as long as may be.

    Args:
        shape: The model's own configuration.
        end: Tokens that close an answer.
    """
    if encoded is None:
        return _assumed_work(config, end)
    data = config.data
    test = encoded["test"]
    return Workload(
        training=tuple(_micro_batches(config, shape, encoded["train"], end)),
        accumulate=config.trainer.accumulate_grad_batches,
        scoring=tuple(_scoring_batch(rows) for rows in _batches(test, list(map(scored_tokens, test)), data)),
        generation=tuple(_generation_batches(config, test)) if config.evaluation.generate else (),
        validation=tuple(
            _scoring_batch(rows)
            for rows in _batches(encoded["validation"], list(map(scored_length, encoded["validation"])), data)
        ),
    )


def _micro_batches(
    config: TrainConfig, shape: PretrainedConfig, questions: Sequence[EncodedQuestion], end: int
) -> Iterator[MicroBatch]:
    shared = shares_prefix(config, shape, questions, end, cache_reach(shape))
    collator = AnswerCollator([0] * end, share_prefix=shared)
    examples = [collator.example(question) for question in questions]
    lengths, labels = [len(ids) for ids, _ in examples], [count for _, count in examples]
    size, accumulate = config.data.micro_batch_size, config.trainer.accumulate_grad_batches
    most = (config.trainer.max_steps or len(questions) * EPOCHS_LOOKED_AT) * accumulate
    for epoch in range(min(config.trainer.max_epochs, EPOCHS_LOOKED_AT)):
        planned = plan_epoch(lengths, labels, size, accumulate, config.seed, epoch)
        for batch in planned[:most]:
            prefix = collator.shared([questions[row] for row in batch.rows])
            width = max(lengths[row] for row in batch.rows) - 1 - prefix  # the last token is a target only
            yield MicroBatch(len(batch.rows), width, sum(labels[row] for row in batch.rows), prefix)
        most -= len(planned)
        if most <= 0:
            return


def _batches(
    questions: Sequence[EncodedQuestion], lengths: list[int], data: DataConfig
) -> Iterator[list[EncodedQuestion]]:
    for rows in plan_batches(lengths, data.max_batch_tokens):
        yield [questions[row] for row in rows]


def _scoring_batch(questions: Sequence[EncodedQuestion]) -> ScoringBatch:
    options = [ids for question in questions for ids in question.option_ids]
    prompts = [question.prompt_ids for question in questions]
    prefix = shared_length(prompts)
    return ScoringBatch(
        rows=len(questions),
        width=max(map(len, prompts)) - prefix,
        options=max(len(question.option_ids) for question in questions),
        option_width=max(map(len, options)),
        continued=sum(len(ids) - 1 for ids in options),
        prefix=prefix,
    )


def _generation_batches(config: TrainConfig, questions: Sequence[EncodedQuestion]) -> Iterator[GenerationBatch]:
    new = config.evaluation.max_new_tokens
    for rows in _batches(questions, [generated_tokens(item, config.evaluation) for item in questions], config.data):
        prompts = [item.prompt_ids for item in rows]
        prefix = shared_length(prompts)
        yield GenerationBatch(len(rows), max(map(len, prompts)) - prefix, new, prefix)


def _assumed_work(config: TrainConfig, end: int) -> Workload:
    """Questions of `data.max_length` tokens; answers of one letter, or of `evaluation.max_new_tokens` tokens."""
    data, new = config.data, config.evaluation.max_new_tokens
    answer = 1 if config.prompt.protocol is Protocol.letter else new
    prompt = max(1, data.max_length - answer - end)
    rows = max(1, data.max_batch_tokens // (prompt + ASSUMED_OPTIONS * answer))
    scoring = ScoringBatch(rows, prompt, ASSUMED_OPTIONS, answer, rows * ASSUMED_OPTIONS * (answer - 1))
    micro = MicroBatch(data.micro_batch_size, data.max_length - 1, data.micro_batch_size * (answer + end))
    accumulate = config.trainer.accumulate_grad_batches
    generation = GenerationBatch(max(1, data.max_batch_tokens // (prompt + new)), prompt, new)
    return Workload(
        (micro,) * (accumulate + 1),
        accumulate,
        (scoring,),
        (generation,) if config.evaluation.generate else (),
        (scoring,),
    )


# ----------------------------------------------------------------------------------------------------- what would fit


def _changes_that_fit(config: TrainConfig, planner: Planner, encoded: Encoded | None, end: int) -> Sequence[str]:
    def peak(candidate: TrainConfig) -> int:
        return planner.plan(candidate, _work(candidate, planner.shape, encoded, end)).peak

    device = planner.device
    return find_fit(
        config, peak, round(device.capacity * (1 if device.on_gpu else SHARE_ADVISED)), on_gpu=device.on_gpu
    )


def _command(changes: Sequence[str]) -> str:
    """The command as it was typed, with the changes in place of what they replace."""
    typed = typed_overrides(HydraConfig.get()) if HydraConfig.initialized() else []
    replaced = {change.split("=")[0] for change in changes} | ({"quant"} if "method=qlora" in changes else set())
    kept = [item for item in typed if item.split("=")[0] not in replaced and not item.startswith("plan.")]
    return shlex.join(["python", "train.py", *kept, *changes])
