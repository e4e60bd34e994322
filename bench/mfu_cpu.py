"""Share of the machine's float32 peak that LoRA training of SmolLM2-135M reaches on this CPU, and where the rest goes.

Achieved: model FLOPs on non-padding tokens (bench/flops.py) over the wall time of cyberlm's real training steps; and,
beside it, the FLOPs of what was really computed, with the tokens that all examples of a batch begin with counted once.
Peak: the fastest of several large square matrix products in the same process, with the same threads and by the faster
of the two libraries (models/fast_layers.py), measured in turns with the training. Besides: how fast the model's own
matrices can be multiplied at the shape of a batch, which is what a perfect step of this shape could reach, and the
operations that take the time (torch.profiler, one block).
"""

import time
from typing import Any, NamedTuple

import measure

SQUARES = (1024, 1536, 2048, 3072)
SECONDS_A_PRODUCT = 0.4
"""How long each size of product is repeated; the fastest counts."""


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--prompt", default="text", help="cyberlm's prompt (default %(default)s)")
    parser.add_argument("--block", type=int, default=8, help="optimizer steps of one turn (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="questions of one step (default %(default)s)")
    parser.add_argument("--model", default="smollm2_135m", help="default %(default)s")
    options = parser.parse_args()
    if options.small:
        options.pairs, options.block = 2, 2
    measure.limit_threads(options.threads)
    run = Training(options)
    run.go()
    report(options, run)


class Training:
    """cyberlm's training in blocks, with products of matrices in between.

    Attributes:
        achieved, computed, peaks: FLOP/s of each turn.
        padding: Share of padding in all tokens that were computed on.
        operations: Of one more block, profiled.
    """

    def __init__(self, options: Any) -> None:
        import torch
        from cyberlm_side import config_of, cybermetric
        from flops import shape_of

        from cyberlm.models.loading import load_base, load_tokenizer
        from cyberlm.models.methods.method import attach
        from cyberlm.tasks.prompts import Prompt

        self.blocks = 2 + options.pairs  # warm-up, turns, profile
        self.options = options
        overrides = (f"model={options.model}", f"prompt={options.prompt}", f"data.micro_batch_size={options.batch}")
        self.config = config_of("method=lora", *overrides)
        self.prompt = Prompt(self.config.prompt, load_tokenizer(self.config.model))
        count = self.blocks * options.block * options.batch
        encoded = self.prompt.encode(cybermetric(count + options.batch))
        self.encoded = {"train": encoded[:count], "validation": encoded[count:]}
        torch.manual_seed(self.config.seed)
        self.loaded = attach(load_base(self.config.model, self.config.quant, torch.device("cpu")), self.config)
        self.shape = shape_of(self.loaded.causal.config)
        self.plan = planned_work(self)
        self.achieved: list[float] = []
        self.computed: list[float] = []
        self.peaks: list[float] = []
        self.seconds: list[float] = []
        self.operations: list[list[Any]] = []
        self.padding = 1 - sum(sum(step.rest) for step in self.plan) / sum(max(s.rest) * len(s.rest) for s in self.plan)

    def go(self) -> None:
        from cyberlm_side import fit_in_blocks

        self.done = 0
        self.profiler = measure.profiler()
        steps = self.options.block
        fit_in_blocks(self.config, self.loaded, self.prompt, self.encoded, lambda: measure.Blocks(steps, self.between))

    def between(self, block: measure.Block) -> None:
        steps = self.plan[self.done * self.options.block : (self.done + 1) * self.options.block]
        if sum(sum(step.whole()) + len(step.rest) for step in steps) != block.tokens:
            raise measure.Disagreement("the steps trained on are not the steps whose FLOPs were counted")
        self.done += 1
        print(f"block {self.done} of {self.blocks}", flush=True)
        if self.done == self.blocks:
            self.profiler.stop()
            self.operations = measure.top_operations(self.profiler, 16)
            return
        if self.done > 1:
            self.achieved.append(sum(step_flops(self, step) for step in steps) / block.seconds)
            self.computed.append(sum(computed_flops(self, step) for step in steps) / block.seconds)
            self.seconds.append(block.seconds)
            self.peaks.append(max(product_speed(n, n, n) for n in SQUARES))
        if self.done == self.blocks - 1:
            self.profiler.start()


class Step(NamedTuple):
    """Input tokens of a step: those that its examples share, what each goes on with; and its labels."""

    shared: int
    rest: list[int]
    labels: int

    def whole(self) -> list[int]:
        return [self.shared + tokens for tokens in self.rest]


def planned_work(run: Training) -> list[Step]:
    """Each step, in order, from the loader that training uses."""
    from cyberlm.data.datamodule import QuestionData

    data = QuestionData(
        run.config.data, run.encoded["train"], [], run.prompt.end_ids, 1, run.config.seed, share_prefix=True
    )
    return [
        Step(len(batch.prefix_ids), batch.attention_mask.sum(1).tolist(), len(batch.targets))
        for batch in data.train_dataloader()
    ]


def step_flops(run: Training, step: Step) -> float:
    """What the examples need, each on its own."""
    from flops import training_flops

    assert run.config.method.lora is not None
    return training_flops(run.shape, step.whole(), step.labels, run.config.method.lora.rank)


def computed_flops(run: Training, step: Step) -> float:
    """What is left once the tokens that all share are computed once."""
    from flops import training_flops

    assert run.config.method.lora is not None
    return training_flops(run.shape, step.rest, step.labels, run.config.method.lora.rank, step.shared)


def product_speed(rows: int, inner: int, columns: int) -> float:
    """FLOP/s of the fastest of repeated float32 products (rows, inner) x (inner, columns), by the faster library."""
    import torch

    from cyberlm.models.fast_layers import use_fast_layers

    layer = torch.nn.Sequential(torch.nn.Linear(inner, columns, bias=False)).requires_grad_(False)
    use_fast_layers(layer)
    left = torch.randn(rows, inner)
    best, ends = float("inf"), time.perf_counter() + SECONDS_A_PRODUCT
    while time.perf_counter() < ends:
        started = time.perf_counter()
        layer(left)
        best = min(best, time.perf_counter() - started)
    return 2.0 * rows * inner * columns / best


def report(options: Any, run: Training) -> None:
    share = measure.ratio(run.achieved, run.peaks)
    share_computed = measure.ratio(run.computed, run.peaks)
    tokens = sorted(sum(step.rest) for step in run.plan)[len(run.plan) // 2]
    labels = sorted(step.labels for step in run.plan)[len(run.plan) // 2]
    shapes = {name: (tokens, a, b) for name, (a, b) in run.shape.matrices().items()}
    shapes["head"] = (labels, run.shape.hidden, run.shape.vocabulary)
    speeds = {name: product_speed(*sizes) for name, sizes in shapes.items()}
    rows: list[list[object]] = [["", "GFLOP/s", "of the peak"]]
    rows.append(["training, achieved", measure.spread([v / 1e9 for v in run.achieved]), share])
    rows.append(["training, really computed", measure.spread([v / 1e9 for v in run.computed]), share_computed])
    rows.append(["largest square product: the peak", measure.spread([v / 1e9 for v in run.peaks]), "1"])
    for name, (m, k, n) in shapes.items():
        part = f"{speeds[name] / max(run.peaks):.3g}"
        rows.append([f"product of {name} ({m}x{k}x{n})", f"{speeds[name] / 1e9:.3g}", part])
    title = f"LoRA training of {options.model}, float32, {options.batch} questions a step, prompt={options.prompt}"
    print("\n" + measure.table(title, rows))
    print(f"\npadding: {run.padding:.1%} of the tokens computed on; median step: {tokens} tokens, {labels} labels")
    print("\n" + measure.operations_table("one block of training", run.operations))
    body = {
        "goal": "at least 0.70",
        "ratio": share._asdict(),
        "ratio_computed": share_computed._asdict(),
        "achieved_flops_per_second": run.achieved,
        "computed_flops_per_second": run.computed,
        "peak_flops_per_second": run.peaks,
        "seconds": run.seconds,
        "products": {name: {"shape": shapes[name], "flops_per_second": speeds[name]} for name in shapes},
        "padding": run.padding,
        "operations": run.operations,
    }
    measure.write_results("mfu_cpu", options.small, body)


if __name__ == "__main__":
    main()
