"""Rules on what a configuration asks of the devices: of a CPU, and of several processes."""

from collections.abc import Iterator

from cyberlm.config.schema import OptimizerName, QuantName, Strategy, TrainConfig
from cyberlm.runtime.errors import Problem


def device_problems(config: TrainConfig) -> Iterator[Problem]:
    """What the devices that are asked for cannot do."""
    yield from _cpu_problems(config)
    yield from _strategy_problems(config)


def _cpu_problems(config: TrainConfig) -> Iterator[Problem]:
    """What a CPU cannot do, where one is asked for; with `auto` it is known only once torch has looked for a GPU."""
    if config.trainer.accelerator != "cpu":
        return
    if config.optim.name is not OptimizerName.adamw:
        yield Problem(f"optim.name={config.optim.name.name} on a CPU: 8-bit states need a GPU", "adamw", "optim=adamw")
    if config.trainer.precision == "16-mixed":
        yield Problem("trainer.precision=16-mixed on a CPU", "auto, 32-true, bf16-mixed", "trainer.precision=auto")


def _strategy_problems(config: TrainConfig) -> Iterator[Problem]:
    """What cannot be spread over several processes."""
    trainer, strategy = config.trainer, config.trainer.strategy
    if strategy is not Strategy.auto and trainer.devices == 1:
        allowed = "trainer.devices=2 or more, or trainer.strategy=auto"
        yield Problem(f"trainer.strategy={strategy.name} with one device", allowed, "trainer.strategy=auto")
    if strategy is not Strategy.fsdp2:
        return
    allowed, fix = "trainer.strategy=ddp", "trainer.strategy=ddp"
    if config.quant.name is QuantName.nf4:
        yield Problem("trainer.strategy=fsdp2 with a 4-bit base, whose weights cannot be cut up", allowed, fix)
    if trainer.gradient_checkpointing:
        yield Problem("trainer.strategy=fsdp2 with trainer.gradient_checkpointing=true", allowed, fix)
    if trainer.precision == "16-mixed":
        yield Problem("trainer.strategy=fsdp2 with trainer.precision=16-mixed", "auto, 32-true, bf16-mixed")
    if config.optim.name is not OptimizerName.adamw:
        yield Problem(f"trainer.strategy=fsdp2 with optim.name={config.optim.name.name}", "adamw", "optim=adamw")
    if config.method.lora is not None and config.method.lora.use_dora:
        yield Problem("trainer.strategy=fsdp2 with method.lora.use_dora=true", allowed, fix)
