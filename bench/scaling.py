"""Estimates, on paper, of training Llama 3 8B and 70B on 8, 64 and 256 H100 GPUs: no figure of it was measured.

A step's products take its operations over what a GPU achieves; a collective takes a latency for each hop of its ring
and its bytes over the slowest link (the form is checked by bench/collectives.py). Gathering and spreading run beside
the products where there are any (FSDP2 prefetches, DDP sends while it goes backward): a step takes the longer of both.
Not counted: optimizer step, validation, checkpoints, padding, stragglers.
"""

import argparse
from dataclasses import dataclass

PEAK = 989e12
"""FLOP/s of bfloat16 products, dense: NVIDIA, H100 SXM data sheet."""
ACHIEVED = 0.40
"""Share of it in training: 38 to 43% on up to 16,384 H100 (The Llama 3 Herd of Models, arXiv 2407.21783, table 4)."""
HBM = 3.35e12
"""Bytes/s of a GPU's memory (the same data sheet)."""
NVLINK = 360e9
"""Bytes/s of a GPU within a node: what NCCL counts with on Hopper, of 450e9 each way (the data sheet's 900)."""
NETWORK = 8 * 50e9
"""Bytes/s of a node: eight adapters of 400 Gbit/s (NVIDIA, DGX H100 data sheet), one a GPU, all used by a ring."""
GPUS_PER_NODE = 8
LAUNCH, NVLINK_HOP, NETWORK_HOP = 8.4e-6, 3.4e-6, 14e-6
"""Seconds: NCCL's own constants for a ring with its Simple protocol (baseLatencies, hwLatencies in its tuning.cc)."""
NF4_BYTES = 4.5
"""Bytes moved to use a 4-bit weight once: half a byte read, two written expanded, two read by the product."""


@dataclass(frozen=True)
class Model:
    """Published sizes: weights, of these in one layer and in the output head (or the embeddings), layers, LoRA's."""

    weights: float
    layer: float
    head: float
    layers: int
    adapter: float


MODELS = {
    "8B": Model(8.03e9, 218e6, 525e6, 32, 42e6),
    "70B": Model(70.55e9, 856e6, 1.05e9, 80, 207e6),
}
CASES = (
    ("8B", "sft", "fsdp2"),
    ("8B", "lora", "ddp"),
    ("70B", "sft", "fsdp2"),
    ("70B", "qlora", "fsdp2"),
    ("70B", "qlora", "ddp"),
)


def collective(size: float, gpus: int) -> float:
    """Seconds of an all-gather to, or a reduce-scatter of, `size` bytes in all; an all-reduce takes two of them."""
    nodes = -(-gpus // GPUS_PER_NODE)
    link = NVLINK if nodes == 1 else min(NVLINK, NETWORK)
    between = nodes - 1
    return LAUNCH + between * NETWORK_HOP + (gpus - 1 - between) * NVLINK_HOP + size * (gpus - 1) / gpus / link


def computing(model: Model, method: str, tokens: int) -> float:
    """Seconds of a micro-batch's products, with gradient checkpointing: two forward passes and the backward pass.

    Two operations a weight and token in each pass; the backward pass has the products of the inputs' gradients, and in
    full fine-tuning those of the weights' as well.
    """
    passes = 4 if method == "sft" else 3
    expanding = 3 * NF4_BYTES * model.weights / HBM if method == "qlora" else 0.0
    return 2 * passes * model.weights * tokens / (PEAK * ACHIEVED) + expanding


def communicating(model: Model, method: str, strategy: str, gpus: int) -> float:
    """Seconds of a micro-batch's collectives: FSDP2 gathers each layer twice, and spreads its gradients in float32."""
    if strategy == "ddp":
        return 2 * collective(4 * model.adapter, gpus)
    number = 0.5 if method == "qlora" else 2.0
    units = [(model.layer, number)] * model.layers + [(model.head, 2.0)] * 2
    trained = model.weights if method == "sft" else model.adapter
    spreading = 4 * trained / model.layers
    return sum(2 * collective(size * each, gpus) for size, each in units) + model.layers * collective(spreading, gpus)


def held(model: Model, method: str, strategy: str, gpus: int) -> float:
    """Bytes of weights, gradients and optimizer states on each GPU: 16 a trained weight, 2 or 0.5 a frozen one.

    FSDP2 leaves the scales of 4-bit weights whole.
    """
    frozen, scales = {"sft": (0.0, 0.0), "lora": (2.0, 0.0), "qlora": (0.5, 0.016)}[method]
    spread = 16 * (model.weights if method == "sft" else model.adapter) + frozen * model.weights
    return spread / (gpus if strategy == "fsdp2" else 1) + scales * model.weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[300, 2400], help="of a GPU's micro-batch")
    counts = parser.parse_args().tokens
    heads = "".join(f" {tokens} tokens a GPU |" for tokens in counts)
    print(f"| model, method | GPUs | held, GB a GPU | collectives, ms | products take as long at |{heads}")
    print("|---|---|---|---|---|" + "---|" * len(counts))
    for name, method, strategy in CASES:
        model = MODELS[name]
        fixed = computing(model, method, 0)
        for gpus in (8, 64, 256):
            sent = communicating(model, method, strategy, gpus)
            balance = max(0.0, (sent - fixed) / (computing(model, method, 1) - fixed))
            shares = [computing(model, method, tokens) / sent for tokens in counts]
            line = f"| {name} {method} {strategy} | {gpus} | {held(model, method, strategy, gpus) / 1e9:,.1f} "
            line += f"| {sent * 1e3:,.0f} | {balance:,.0f} tokens |"
            print(line + "".join(f" {min(1.0, share):.0%} |" for share in shares))


if __name__ == "__main__":
    main()
