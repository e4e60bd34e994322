"""A plan of a run's memory: made from its configuration and its batches, and shown as a table."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich import box
from rich.table import Table
from transformers import PretrainedConfig

from cyberlm.config.schema import ModelSource, TrainConfig
from cyberlm.models.meta_model import Skeleton, build_skeleton
from cyberlm.planning.footprint import CUDA_CONTEXT, Placement, Workload, phases
from cyberlm.planning.network import Network, read_network

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """Where a run takes place.

    Attributes:
        name: For people, for example `host memory` or the name of a GPU.
        kind: cpu or cuda.
        capacity: Bytes that the run may take.
        runtime: Bytes taken before a model is loaded.
    """

    name: str
    kind: torch.device
    capacity: int
    runtime: int = CUDA_CONTEXT

    @property
    def on_gpu(self) -> bool:
        return self.kind.type == "cuda"


@dataclass(frozen=True)
class Plan:
    """Predicted bytes.

    Attributes:
        phases: By phase, then by part.
        network: The model in numbers.
        work: Its batches.
        device: Where.
    """

    phases: Mapping[str, Mapping[str, int]]
    network: Network
    work: Workload
    device: Device

    @property
    def peak(self) -> int:
        return max(sum(parts.values()) for parts in self.phases.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.device.capacity

    @property
    def allocated_peak(self) -> int:
        """The figure that a run measures: resident memory on a host, on a GPU what torch has allocated."""
        return self.peak - (self.device.runtime if self.device.on_gpu else 0)


class Planner:
    """Plans runs of one model on one device.

    Args:
        shape: The model's own configuration.
        device: Where the runs take place.
    """

    def __init__(self, shape: PretrainedConfig, device: Device) -> None:
        self.shape, self.device = shape, device
        self.known: dict[str, tuple[Network, int]] = {}

    def plan(self, config: TrainConfig, work: Workload) -> Plan:
        """What the run of `config`, with these batches, takes."""
        key = repr((config.quant, config.method.lora, config.trainer.precision))
        if key not in self.known:
            self.known[key] = self._read(config)
        network, converted = self.known[key]
        place = Placement(
            config.optim.name,
            config.trainer.gradient_checkpointing,
            self.device.on_gpu,
            self.device.runtime,
            converted,
        )
        return Plan(phases(network, work, place), network, work, self.device)

    def _read(self, config: TrainConfig) -> tuple[Network, int]:
        lora, precision, on_gpu = config.method.lora, config.trainer.precision, self.device.on_gpu
        skeleton = build_skeleton(self.shape, config.model, config.quant.name, lora, self.device.kind)
        mixed = precision.endswith("mixed") or (precision == "auto" and on_gpu)
        network = read_network(skeleton, config.quant, lora, config.model.attention, on_gpu=on_gpu, mixed=mixed)
        return network, 0 if on_gpu else _converted(skeleton, config.model.source)


def _converted(skeleton: Skeleton, source: ModelSource) -> int:
    """Bytes of the weights' file, which stays mapped until all weights are out of it, and of what is quantised.

    Numbers that are kept as they are in the file are moved, too, to where products are faster (`models.cpu_kernels`).
    """
    stored = skeleton.shape.dtype
    stored = stored if isinstance(stored, torch.dtype) else torch.float32
    kept = skeleton.base[0].dtype
    file = sum(parameter.numel() for parameter in skeleton.base) * stored.itemsize
    if skeleton.quantised:
        return file + sum(parameter.numel() for parameter in skeleton.quantised) * kept.itemsize
    return 0 if source is ModelSource.tiny else file


def plan_table(plan: Plan) -> Table:
    """Parts as rows, phases as columns, MiB."""
    table = Table(title="Memory, MiB", title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("")
    for name in plan.phases:
        table.add_column(name, justify="right")
    parts = dict.fromkeys(part for phase in plan.phases.values() for part in phase)
    for part in parts:
        table.add_row(part, *(_mib(phase.get(part, 0)) for phase in plan.phases.values()))
    table.add_section()
    table.add_row("in all", *(_mib(sum(phase.values())) for phase in plan.phases.values()))
    return table


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}" if size else "-"


def describe_batches(plan: Plan) -> str:
    """The longest micro-batch in words."""
    longest = max(plan.work.training, key=lambda batch: batch.tokens)
    prefix = f" and {longest.prefix} tokens that all share" if longest.prefix else ""
    return (
        f"{longest.rows} x {longest.width} tokens{prefix}, {longest.labels} of them trained on; "
        f"{plan.work.accumulate} micro-batches in a step"
    )


def verdict(plan: Plan) -> str:
    """Whether it fits, in one line."""
    needs, has = plan.peak / GIB, plan.device.capacity / GIB
    word = "fits" if plan.fits else "does not fit"
    return f"Peak {needs:.2f} GiB; {plan.device.name} {has:.2f} GiB: {word}."
