"""What each change to a training step was expected to give, and gives: LoRA on SmolLM2-135M, CyberMetric, on a CPU.

The steps go from what a plain loop does to what cyberlm does, one change at a time, on the same questions and with the
same weights; the summed loss of the questions must stay the same. Expected: the ratio of the FLOPs that are computed
(bench/flops.py, padding included), which knows nothing of memory traffic; for oneDNN, the ratio of the two libraries'
speeds on the model's largest matrix. The variants take turns; the median of the ratios of neighbours counts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import measure

SAME_LOSS = 1e-4
"""Share by which the summed losses of two variants may differ."""


class Variant(NamedTuple):
    """One way to train on the questions.

    Attributes:
        bucketed: Questions of like length in a batch, instead of any.
        answers_only: The output head on the answers' places, instead of every place.
        share_prefix: What all prompts of a batch begin with once, instead of in each.
        fast: Products by oneDNN, instead of MKL.
    """

    name: str
    bucketed: bool = False
    answers_only: bool = False
    share_prefix: bool = False
    fast: bool = False


VARIANTS = (
    Variant("random batches, head on every place"),
    Variant("+ head on the answers' places only", answers_only=True),
    Variant("+ batches of like length", bucketed=True, answers_only=True),
    Variant("+ shared beginnings computed once", bucketed=True, answers_only=True, share_prefix=True),
    Variant("+ oneDNN's products", bucketed=True, answers_only=True, share_prefix=True, fast=True),
)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--prompt", default="text", help="cyberlm's prompt (default %(default)s)")
    parser.add_argument("--questions", type=int, default=64, help="of one turn (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="questions of one step (default %(default)s)")
    options = parser.parse_args()
    if options.small:
        options.pairs, options.questions = 2, 16
    measure.limit_threads(options.threads)
    sides = {variant.name: Side(variant, options) for variant in VARIANTS}
    for side in sides.values():
        side.run()
    turns = measure.interleave({name: side.run for name, side in sides.items()}, options.pairs, print)
    report(options, sides, turns)


class Side:
    """A model with an adapter, and the batches that a variant makes of the questions."""

    def __init__(self, variant: Variant, options: Any) -> None:
        import torch
        from cyberlm_side import config_of, cybermetric

        from cyberlm.models import fast_layers
        from cyberlm.models.loading import load_base, load_tokenizer
        from cyberlm.models.methods.method import attach
        from cyberlm.tasks.prompts import Prompt

        self.variant = variant
        config = config_of("method=lora", f"prompt={options.prompt}", f"data.micro_batch_size={options.batch}")
        torch.manual_seed(config.seed)
        chosen = fast_layers.onednn_is_faster
        if not variant.fast:
            fast_layers.onednn_is_faster = lambda: False
        self.loaded = attach(load_base(config.model, config.quant, torch.device("cpu")), config)
        fast_layers.onednn_is_faster = chosen
        self.loaded.model.train()
        prompt = Prompt(config.prompt, load_tokenizer(config.model))
        self.rank = config.method.lora.rank
        self.batches = self.plan(prompt, prompt.encode(cybermetric(options.questions)), options.batch)

    def plan(self, prompt: Any, encoded: Sequence[Any], size: int) -> list[Any]:
        import torch

        from cyberlm.data.batches import AnswerCollator, plan_epoch

        collator = AnswerCollator(prompt.end_ids, share_prefix=self.variant.share_prefix)
        examples = [collator.example(item) for item in encoded]
        if self.variant.bucketed:
            planned = plan_epoch([len(ids) for ids, _ in examples], [n for _, n in examples], size, 1, 0, 0)
            rows = [batch.rows for batch in planned]
        else:
            order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(0)).tolist()
            rows = [order[k : k + size] for k in range(0, len(order), size)]
        return [collator(([encoded[row] for row in batch], 1)) for batch in rows]

    def run(self) -> tuple[float, float]:
        """Forward and backward over all batches: seconds, and the summed loss."""
        import time

        from cyberlm.training.losses import answer_nll_sum, hidden_states

        started, total = time.perf_counter(), 0.0
        loss_of: Callable[..., Any] = answer_nll_sum if self.variant.answers_only else whole_nll_sum
        for batch in self.batches:
            hidden = hidden_states(self.loaded.backbone, self.loaded.causal.config, batch)
            loss = loss_of(hidden, self.loaded.head, batch)
            loss.backward()
            total += float(loss.detach())
            self.loaded.model.zero_grad()
        return time.perf_counter() - started, total

    def flops(self) -> float:
        """Computed in one turn, padding included."""
        from flops import shape_of, training_flops

        shape = shape_of(self.loaded.causal.config)
        total = 0.0
        for batch in self.batches:
            count, width = batch.input_ids.shape
            labels = len(batch.targets) if self.variant.answers_only else count * width
            total += training_flops(shape, [width] * count, labels, self.rank, len(batch.prefix_ids))
        return total


def whole_nll_sum(hidden: Any, head: Any, batch: Any) -> Any:
    """The same loss from logits of every place, the way transformers computes it."""
    import torch

    logits = head(hidden).float().flatten(0, 1)  # (B*T, V)
    labels = torch.full((len(logits),), -100)
    labels[batch.answer_index] = batch.targets
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)


def products_ratio(side: Side) -> float:
    """How many times as fast oneDNN multiplies the model's largest matrix as MKL, at the shape of a batch."""
    from mfu_cpu import product_speed

    from cyberlm.models import fast_layers

    model, places = side.loaded.causal.config, side.batches[0].input_ids.numel()
    sizes = (places, model.hidden_size, model.intermediate_size)
    chosen = fast_layers.onednn_is_faster
    fast_layers.onednn_is_faster = lambda: False
    plain = product_speed(*sizes)
    fast_layers.onednn_is_faster = chosen
    return product_speed(*sizes) / plain


def report(options: Any, sides: dict[str, Side], turns: dict[str, list[tuple[float, float]]]) -> None:
    seconds = {name: [second for second, _ in rows] for name, rows in turns.items()}
    losses = {name: rows[-1][1] for name, rows in turns.items()}
    first, *others = sides
    rows: list[list[object]] = [["", "s a turn", "expected", "gave", "in all"]]
    rows.append([first, measure.spread(seconds[first]), "", "", "1"])
    found = []
    for before, name in zip(sides, others, strict=False):
        fast = sides[name].variant.fast
        expected = products_ratio(sides[name]) if fast else sides[before].flops() / sides[name].flops()
        gave, whole = measure.ratio(seconds[before], seconds[name]), measure.ratio(seconds[first], seconds[name])
        rows.append([name, measure.spread(seconds[name]), f"{expected:.2f}", gave, f"{whole.median:.3g}"])
        found.append({"name": name, "expected": expected, "gave": gave._asdict(), "in_all": whole._asdict()})
        measure.agree(f"{name}: summed loss", losses[name] / losses[first], 1.0, SAME_LOSS)
    title = f"LoRA step of SmolLM2-135M, float32: {options.questions} questions, {options.batch} a batch"
    print("\n" + measure.table(f"{title}, prompt={options.prompt}", rows))
    measure.write_results("levers", options.small, {"levers": found, "losses": losses, "seconds": seconds})


if __name__ == "__main__":
    main()
