"""How much memory a run will take, before it takes it; from shapes alone, no weights are loaded (docs/planning.md)."""

from cyberlm.planning.activations import MicroBatch
from cyberlm.planning.footprint import CUDA_CONTEXT, GenerationBatch, ScoringBatch, Workload
from cyberlm.planning.machine import give_back, gpu_bytes, host_bytes, resident_bytes
from cyberlm.planning.network import NotPlanned
from cyberlm.planning.plans import GIB, Device, Plan, Planner, describe_batches, plan_table, verdict
from cyberlm.planning.remedies import find_fit

__all__ = [
    "CUDA_CONTEXT",
    "GIB",
    "Device",
    "GenerationBatch",
    "MicroBatch",
    "NotPlanned",
    "Plan",
    "Planner",
    "ScoringBatch",
    "Workload",
    "describe_batches",
    "find_fit",
    "give_back",
    "gpu_bytes",
    "host_bytes",
    "plan_table",
    "resident_bytes",
    "verdict",
]
