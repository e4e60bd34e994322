"""A training step of cyberlm (Lightning, Hydra, its callbacks and its metrics.csv) over a bare PyTorch loop's.

Both do the same work: the same batches in the same order from the same loader, the same model, loss, clipping, fused
AdamW and schedule. They take turns in one process: cyberlm's real training is paused after each block of steps, and
the bare loop does its block. The script fails unless the losses of all steps are the same to 1e-6.
"""

import copy
from typing import Any

import measure

SAME_LOSS = 1e-6
MODELS = ("smollm2_135m", "tiny_random")


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--block", type=int, default=8, help="optimizer steps of one turn (default %(default)s)")
    parser.add_argument("--prompt", default="text", help="cyberlm's prompt (default %(default)s)")
    options = parser.parse_args()
    if options.small:
        options.pairs, options.block = 2, 2
    measure.limit_threads(options.threads)
    rows: list[list[object]] = [["", "cyberlm, ms a step", "bare loop, ms a step", "ratio", "losses apart"]]
    found = {}
    for model in MODELS:
        framework, bare = side_by_side(model, options)
        apart = max(abs(a - b) for a, b in zip(losses(framework), losses(bare), strict=True))
        ours, theirs = seconds_a_step(framework), seconds_a_step(bare)
        ratio = measure.ratio(ours, theirs)
        in_ms = [measure.spread([1000 * value for value in side]) for side in (ours, theirs)]
        rows.append([model, *in_ms, ratio, f"{apart:.1e}"])
        turns = {"cyberlm": [b._asdict() for b in framework], "bare loop": [b._asdict() for b in bare]}
        found[model] = {"ratio": ratio._asdict(), "losses_apart": apart, "turns": turns}
    print("\n" + measure.table(f"One step, {options.pairs} x {options.block} steps of 8 questions", rows))
    measure.write_results(
        "lightning_overhead", options.small, {"goal": "at most 1.03 on smollm2_135m", "models": found}
    )
    for model, result in found.items():
        measure.agree(f"{model}: losses", result["losses_apart"], 0, SAME_LOSS)


def seconds_a_step(blocks: list[measure.Block]) -> list[float]:
    return [block.seconds / len(block.losses) for block in blocks]


def losses(blocks: list[measure.Block]) -> list[float]:
    return [loss for block in blocks for loss in block.losses]


def side_by_side(model: str, options: Any) -> tuple[list[measure.Block], list[measure.Block]]:
    """Blocks of both sides without the first of each, which is the warm-up."""
    import torch
    from cyberlm_side import config_of, cybermetric, fit_in_blocks

    from cyberlm.models.loading import load_base, load_tokenizer
    from cyberlm.models.methods.method import attach
    from cyberlm.tasks.prompts import Prompt

    batch = 8
    steps = (1 + options.pairs) * options.block
    config = config_of(f"model={model}", f"prompt={options.prompt}", f"data.micro_batch_size={batch}")
    prompt = Prompt(config.prompt, load_tokenizer(config.model))
    encoded = prompt.encode(cybermetric((steps + 1) * batch))
    validation, train = encoded[:batch], encoded[batch:]
    torch.manual_seed(config.seed)
    loaded = attach(load_base(config.model, config.quant, torch.device("cpu")), config)
    bare_blocks: list[measure.Block] = []
    framework_blocks: list[measure.Block] = []
    bare = bare_loop(config, copy.deepcopy(loaded), train, prompt.end_ids, options.block)

    def between(block: measure.Block) -> None:
        framework_blocks.append(block)
        bare_blocks.append(next(bare))
        print(f"{model}: block {len(bare_blocks)} of {1 + options.pairs}", flush=True)

    parts = {"train": train, "validation": validation}
    fit_in_blocks(config, loaded, prompt, parts, lambda: measure.Blocks(options.block, between))
    return framework_blocks[1:], bare_blocks[1:]


def bare_loop(config: Any, loaded: Any, train: Any, end_ids: Any, block: int) -> Any:
    """The plain loop that anyone would write, one block of steps a `next`."""
    import torch
    from cyberlm_side import tokens_of

    from cyberlm.data.datamodule import QuestionData
    from cyberlm.training.losses import answer_nll_sum, step_loss
    from cyberlm.training.optim import build_optimizer, build_schedule

    loader = QuestionData(config.data, train, [], end_ids, 1, config.seed, share_prefix=True).train_dataloader()
    trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(loaded.model, config.optim, fused=True)
    schedule = build_schedule(optimizer, config.optim, len(loader))
    loaded.model.train()
    done: list[measure.Block] = []
    blocks = measure.Blocks(block, done.append)
    for batch in loader:
        loss = step_loss(answer_nll_sum(loaded, batch), batch, 1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.optim.max_grad_norm)
        optimizer.step()
        schedule.step()
        blocks.step(tokens_of(batch), loss.detach())
        if done:
            yield done.pop()
            blocks.start()


if __name__ == "__main__":
    main()
