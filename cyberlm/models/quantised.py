"""4-bit weights in memory: as they were quantised, and without the file that they were read from."""

from torch import nn


def keep_as_stored(causal: nn.Module) -> None:
    """Keeps 4-bit weights as they were quantised, on every CPU.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a layer in its first forward pass in eval mode, in place: its
    scales become bfloat16 and its results too. Scoring the base model would change the weights that are trained next,
    and figures would depend on the CPU.
    """
    for module in causal.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  # torch types modules' attributes


def leave_file(causal: nn.Module) -> None:
    """Copies what was not quantised out of the weights' file: one view of it would keep all of it in host memory."""
    for parameter in causal.parameters():
        if type(parameter) is nn.Parameter and parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
