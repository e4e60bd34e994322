"""How much memory a run will take, before it takes it; from shapes alone, no weights are loaded (docs/planning.md)."""

from cyberlm.planning.activations import MicroBatch
from cyberlm.planning.footprint import CUDA_CONTEXT, GenerationBatch, ScoringBatch, Workload
from cyberlm.planning.machine import gpu_bytes, host_bytes, resident_bytes
from cyberlm.planning.plans import Device, Plan, describe_batches, make_plan, plan_table, verdict
from cyberlm.planning.remedies import find_fit, memoised

__all__ = [
    "CUDA_CONTEXT",
    "Device",
    "GenerationBatch",
    "MicroBatch",
    "Plan",
    "ScoringBatch",
    "Workload",
    "describe_batches",
    "find_fit",
    "gpu_bytes",
    "host_bytes",
    "make_plan",
    "memoised",
    "plan_table",
    "resident_bytes",
    "verdict",
]
