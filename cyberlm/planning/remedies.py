"""What to change so that a run fits: the first of a few known ways, from the one that costs least."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

from cyberlm.config.schema import LoraConfig, OptimizerName, QuantName, TrainConfig

FEWEST_BATCH_TOKENS = 256

Overrides = tuple[str, ...]


def find_fit(config: TrainConfig, peak_of: Callable[[TrainConfig], int], capacity: int, *, on_gpu: bool) -> Overrides:
    """Overrides under which the predicted peak is within `capacity`; empty where none is.

    Micro-batches get smaller first, with gradients accumulated over more of them, so that a step stays what it was;
    then activations are recomputed; then optimizer states take 8 bits, or less is trained. Where answering the test
    questions takes most, its batches get smaller, too.

    Args:
        config: Of the run that does not fit.
        peak_of: Predicted peak of a configuration, in bytes.
        on_gpu: 8-bit states need one.
    """
    for changes in _ways(config, on_gpu):
        candidate = _applied(config, changes)
        if peak_of(candidate) <= capacity:
            return changes
        if peak_of(_applied(candidate, (f"data.max_batch_tokens={FEWEST_BATCH_TOKENS}",))) > capacity:
            continue  # training alone takes too much
        tokens = config.data.max_batch_tokens // 2
        while tokens > FEWEST_BATCH_TOKENS:
            fewer = (*changes, f"data.max_batch_tokens={tokens}")
            if peak_of(_applied(config, fewer)) <= capacity:
                return fewer
            tokens //= 2
        return (*changes, f"data.max_batch_tokens={FEWEST_BATCH_TOKENS}")
    return ()


def _ways(config: TrainConfig, on_gpu: bool) -> Iterator[Overrides]:
    recompute: Overrides = ("trainer.gradient_checkpointing=true",)
    lighter: list[Overrides] = [()]
    if config.trainer.gradient_checkpointing:
        recompute = ()
    eight = ("optim=paged_adamw_8bit",) if on_gpu and config.optim.name is OptimizerName.adamw else ()
    if config.method.lora is None:
        lighter += [eight, ("method=lora",), ("method=qlora",)]
    elif config.quant.name is QuantName.none:
        lighter += [("method=qlora",), ("method=qlora", *eight)]
    else:
        lighter += [eight]
    for less in dict.fromkeys(lighter):
        for again in dict.fromkeys([(), recompute]):
            for micro in _micro_batches(config):
                yield (*less, *again, *micro)


def _micro_batches(config: TrainConfig) -> Iterator[Overrides]:
    """Halves of the micro-batch, down to one question, with the questions of a step kept."""
    size, accumulate = config.data.micro_batch_size, config.trainer.accumulate_grad_batches
    yield ()
    for power in itertools.count(1):
        if size % 2**power:
            break
        yield f"data.micro_batch_size={size >> power}", f"trainer.accumulate_grad_batches={accumulate << power}"


def _applied(config: TrainConfig, changes: Overrides) -> TrainConfig:
    """The configuration with the overrides of this module applied."""
    for change in changes:
        name, value = change.split("=")
        if name == "method":
            config = _with_method(config, value)
        elif name == "optim":
            config = replace(config, optim=replace(config.optim, name=OptimizerName[value]))
        elif name == "trainer.gradient_checkpointing":
            config = replace(config, trainer=replace(config.trainer, gradient_checkpointing=True))
        else:
            group, key = name.split(".")
            config = replace(config, **{group: replace(getattr(config, group), **{key: int(value)})})
    return config


def _with_method(config: TrainConfig, name: str) -> TrainConfig:
    lora = config.method.lora or LoraConfig()
    quant = replace(config.quant, name=QuantName.nf4 if name == "qlora" else QuantName.none)
    return replace(config, method=replace(config.method, name=name, lora=lora), quant=quant)
