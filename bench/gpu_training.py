"""Training of a Llama-3-8B shape with random weights on one GPU: tokens/s, share of the card's peak, and peak memory.

Methods: LoRA on bfloat16 weights, QLoRA on nf4 weights with double quantisation, and full fine-tuning with paged
8-bit AdamW. Layouts: `packed`, rows of 2048 tokens, two a step, each one long example; `cybermetric`, eight questions
of 100 to 250 tokens. The loss is on answers only: in `packed`, two tokens of every 150. cyberlm trains through its
own Tuner in Lightning; TRL's SFTTrainer with PEFT, its defaults (gradient checkpointing on), trains on the same
tokens.

Nothing is downloaded: weights are random numbers drawn on the card, tokens too. Each turn is a process of its own, A
B A B, so that each side has the whole card; what runs out of memory is reported as such. TRL is left out, with a line
saying so, where it is neither installed nor can be. The script fails where the mean losses of both sides differ by
more than 2 %. `--tiny --device cpu` shows that it works, on a tiny shape.

MFU: model FLOPs on non-padding tokens (bench/flops.py) over the card's dense bfloat16 peak. QLoRA and full
fine-tuning recompute activations, which model FLOPs do not count.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import measure
from random_llama import LLAMA_3_8B, SEED, TINY, random_model, shape

TRL = "trl==1.16.0"
PEAK_TFLOPS = {
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "A100": 312,
    "L40S": 362,
    "A10": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""Dense bfloat16 with float32 accumulation, makers' data sheets; the first name that the card's name holds counts."""

RECOMPUTES = {"lora": False, "qlora": True, "sft": True}
"""cyberlm's gradient checkpointing: where a card of 80 GB (QLoRA: 8 GiB) would not hold the activations."""
RATES = {"lora": 2e-4, "qlora": 2e-4, "sft": 2e-5}
RANK, ALPHA = 16, 32
ANSWER_EVERY, ANSWER_TOKENS = 150, 2
SAME_LOSS = 0.02
SIDES = ("cyberlm", "TRL defaults")


class Example(NamedTuple):
    """Token ids, and where each is one that is trained on."""

    ids: list[int]
    trained: list[bool]


def main() -> None:
    options = arguments()
    measure.limit_threads(options.threads)
    if options.worker:
        side = train_cyberlm if options.worker == SIDES[0] else train_trl
        return side(measure.Channel(), options)
    pythons = {SIDES[0]: Path(sys.executable)}
    if (peer := trl_python()) is not None:
        pythons[SIDES[1]] = peer
    peak = peak_flops(options)
    rows: list[list[object]] = [["", "", "tokens/s", "MFU", "peak GiB", "cyberlm is so many times as fast"]]
    found: dict[str, Any] = {}
    for method in options.methods:
        for layout in options.layouts:
            turns = take_turns(options, pythons, method, layout)
            found[f"{method} {layout}"] = summary = summarise(turns, peak)
            rows += [[f"{method} {layout}", name, *summary[name]["row"]] for name in turns]
    shape = "tiny shape" if options.tiny else "Llama-3-8B shape"
    print("\n" + measure.table(f"{shape} on {options.device}, random weights", rows))
    goals = "LoRA MFU at least 0.55; QLoRA at least 0.40 and at most 8 GiB, packed; SFT in 80 GB; 1.5 times TRL"
    body = {"goal": goals, "peak_flops": peak, "versions_trl": trl_versions(pythons), "measured": found}
    measure.write_results("gpu_training", options.small or options.tiny, body)


def arguments() -> Any:
    parser = measure.parser(__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny shape instead of Llama-3-8B's")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="default %(default)s")
    parser.add_argument("--methods", nargs="+", default=list(RECOMPUTES), choices=list(RECOMPUTES), metavar="METHOD")
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--block", type=int, default=8, help="timed steps of one turn, after as many (%(default)s)")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of a card that is not known here")
    parser.add_argument("--worker", help="(used by the script itself)")
    options = parser.parse_args()
    if options.small:
        options.pairs, options.block = 2, 2
    return options


# ------------------------------------------------------------------------------------------------- turns and figures


def trl_python() -> Path | None:
    if importlib.util.find_spec("trl") is not None:
        return Path(sys.executable)
    try:
        return measure.peer_python("trl", [TRL])
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"TRL is left out: it is not installed and cannot be ({error})")
        return None


def trl_versions(pythons: dict[str, Path]) -> dict[str, str]:
    names = ["trl", "transformers", "peft", "accelerate", "bitsandbytes"]
    return measure.versions_of(pythons[SIDES[1]], names) if SIDES[1] in pythons else {}


def peak_flops(options: Any) -> float | None:
    import torch

    if options.peak_tflops:
        return options.peak_tflops * 1e12
    if options.device == "cpu":
        return None
    card = torch.cuda.get_device_name()
    known = next((value for name, value in PEAK_TFLOPS.items() if name in card), None)
    if known is None:
        print(f"The peak of {card} is not known here: no MFU (give --peak-tflops)")
    return known and known * 1e12


def take_turns(options: Any, pythons: dict[str, Path], method: str, layout: str) -> dict[str, list[dict[str, Any]]]:
    def turn(side: str) -> dict[str, Any]:
        given = ["--device", options.device, "--block", str(options.block), *(["--tiny"] if options.tiny else [])]
        script = Path(__file__).resolve()
        with measure.Worker(side, [pythons[side], script, "--worker", side, *given]) as worker:
            return worker.ask("train", method=method, layout=layout)

    sides = {side: lambda side=side: turn(side) for side in pythons}
    return measure.interleave(sides, options.pairs, lambda text: print(f"{method} {layout}, {text}", flush=True))


def summarise(turns: dict[str, list[dict[str, Any]]], peak: float | None) -> dict[str, Any]:
    """Rows of the table and raw turns of one method and layout.

    Raises:
        Disagreement: If both sides trained and their losses differ.
    """
    summary: dict[str, Any] = {}
    ours = turns[SIDES[0]]
    for name, rows in turns.items():
        if any(row.get("error") for row in rows):
            summary[name] = {"row": ["out of memory", "-", "-", "-"], "turns": rows}
            continue
        rates = [row["tokens"] / row["seconds"] for row in rows]
        mfu = [rate * row["flops_a_token"] / peak for rate, row in zip(rates, rows, strict=True)] if peak else None
        memory = max(row["peak_bytes"] for row in rows) / 2**30
        faster: object = "-"
        if name != SIDES[0] and not any(row.get("error") for row in ours):
            faster = measure.ratio([row["tokens"] / row["seconds"] for row in ours], rates)
            mine, other = (sum(row["mean_loss"] for row in side) / len(side) for side in (ours, rows))
            measure.agree("tokens of both sides", ours[0]["all_tokens"], rows[0]["all_tokens"], 0)
            measure.agree("mean loss of both sides", mine, other, SAME_LOSS * mine)
        row = [measure.spread(rates, 4), measure.spread(mfu) if mfu else "-", f"{memory:.2f}", str(faster)]
        summary[name] = {"row": row, "turns": rows, "mfu": mfu}
    return summary


# ------------------------------------------------------------------------------------------------- tokens


def packed(steps: int, generator: Any, tiny: bool) -> list[Example]:
    length = 256 if tiny else 2048
    return [_example(length, ANSWER_EVERY, generator, tiny) for _ in range(2 * steps)]


def cybermetric(steps: int, generator: Any, tiny: bool) -> list[Example]:
    import torch

    lengths = torch.randint(100, 251, (8 * steps,), generator=generator).tolist()
    return [_example(length, length, generator, tiny) for length in lengths]


LAYOUTS = {"packed": packed, "cybermetric": cybermetric}
ROWS_A_STEP = {"packed": 2, "cybermetric": 8}


def _example(length: int, every: int, generator: Any, tiny: bool) -> Example:
    import torch

    ids = torch.randint(10, (TINY if tiny else LLAMA_3_8B)["vocab_size"], (length,), generator=generator).tolist()
    return Example(ids, [place % every >= every - ANSWER_TOKENS for place in range(length)])


def examples_of(options: Any, layout: str) -> list[Example]:
    """As many as a warm-up block and a timed block take."""
    import torch

    return LAYOUTS[layout](2 * options.block, torch.Generator().manual_seed(SEED), options.tiny)


def flops_a_token(options: Any, method: str, examples: Sequence[Example]) -> float:
    from flops import shape_of, training_flops

    lengths = [len(example.ids) for example in examples]
    labels = sum(sum(example.trained) for example in examples)
    whole = training_flops(shape_of(shape(options.tiny)), lengths, labels, None if method == "sft" else RANK)
    return whole / sum(lengths)


# -------------------------------------------------------------------------------------------------------- both sides


def answered(channel: measure.Channel, options: Any, order: dict[str, Any], train: Any) -> None:
    """Runs `train(examples, blocks)` and replies with the second of its two blocks; the first was the warm-up."""
    import resource

    import torch

    examples = examples_of(options, order["layout"])
    done: list[measure.Block] = []
    try:
        train(examples, lambda: measure.Blocks(options.block, done.append))
    except torch.OutOfMemoryError:
        return channel.reply(error="out of memory")
    if options.device == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    losses = [loss for block in done for loss in block.losses]
    channel.reply(
        seconds=done[1].seconds,
        tokens=done[1].tokens,
        all_tokens=sum(block.tokens for block in done),
        losses=losses,
        mean_loss=sum(losses) / len(losses),
        peak_bytes=memory,
        flops_a_token=flops_a_token(options, order["method"], examples),
    )


def train_cyberlm(channel: measure.Channel, options: Any) -> None:
    import lightning.pytorch as L
    from cyberlm_side import BlockCallback
    from torch.utils.data import DataLoader

    from cyberlm.config import LoraConfig, OptimConfig, OptimizerName, OptionScore
    from cyberlm.models import LoadedModel, add_adapter
    from cyberlm.module import Tuner

    order = channel.receive()
    method = order["method"]

    def train(examples: Sequence[Example], make: Any) -> None:
        model = random_model(method, options.device, options.tiny)
        loaded = LoadedModel(model, model, "random", "random")
        if method == "sft":
            if RECOMPUTES[method]:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            lora = LoraConfig(rank=RANK, alpha=ALPHA)
            loaded = add_adapter(loaded, lora, gradient_checkpointing=RECOMPUTES[method])
        paged = method == "sft" and options.device == "cuda"
        name = OptimizerName.paged_adamw_8bit if paged else OptimizerName.adamw
        optim = OptimConfig(name=name, learning_rate=RATES[method], warmup_fraction=0.0)
        trainer = L.Trainer(
            accelerator="gpu" if options.device == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if options.device == "cuda" else "32-true",
            max_epochs=1,
            gradient_clip_val=optim.max_grad_norm,
            callbacks=[BlockCallback(make)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        batches = answer_batches(examples, ROWS_A_STEP[order["layout"]])
        loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        trainer.fit(Tuner(loaded, optim, OptionScore.per_token), loader)

    answered(channel, options, order, train)


def answer_batches(examples: Sequence[Example], rows_a_step: int) -> list[Any]:
    """cyberlm's batches, planned as in a run: questions of like length together."""
    import torch

    from cyberlm.data.batching import plan_epoch
    from cyberlm.losses import AnswerBatch
    from cyberlm.scoring import pad_right

    lengths = [len(example.ids) for example in examples]
    labels = [sum(example.trained) for example in examples]
    batches = []
    for planned in plan_epoch(lengths, labels, rows_a_step, 1, SEED, 0):
        chosen = [examples[row] for row in planned.rows]
        ids, mask = pad_right([example.ids[:-1] for example in chosen])
        places, targets = [], []
        for row, example in enumerate(chosen):
            wanted = [place for place, trained in enumerate(example.trained) if trained]
            places += [row * ids.shape[1] + place - 1 for place in wanted]
            targets += [example.ids[place] for place in wanted]
        shared = torch.empty(0, dtype=torch.long)  # packed rows and random tokens share no beginning
        parts = (shared, ids, mask, torch.tensor(places), torch.tensor(targets))
        batches.append(AnswerBatch(*parts, planned.step_label_tokens))
    return batches


def train_trl(channel: measure.Channel, options: Any) -> None:
    import tempfile

    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from cyberlm.models.tiny import tiny_tokenizer

    order = channel.receive()
    method = order["method"]

    class Turns(TrainerCallback):
        def __init__(self, make: Any) -> None:
            self.make, self.tokens, self.loss = make, 0, None

        def on_train_begin(self, *unused: Any, **kept: Any) -> None:
            self.blocks = self.make()

        def on_step_end(self, *unused: Any, **kept: Any) -> None:
            self.blocks.step(self.tokens, self.loss)

    def train(examples: Sequence[Example], make: Any) -> None:
        turns = Turns(make)

        class CountingTrainer(SFTTrainer):
            def training_step(self, model: Any, inputs: Any, *others: Any) -> Any:
                turns.tokens = int(inputs["attention_mask"].sum())
                turns.loss = super().training_step(model, inputs, *others)
                return turns.loss

        rows = [
            {"input_ids": ids, "labels": [token if label else -100 for token, label in zip(ids, trained, strict=True)]}
            for ids, trained in examples
        ]
        on_gpu = options.device == "cuda"
        with tempfile.TemporaryDirectory() as folder:
            settings = SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=ROWS_A_STEP[order["layout"]],
                num_train_epochs=1,
                learning_rate=RATES[method],
                lr_scheduler_type="cosine",
                max_length=None,
                use_cpu=not on_gpu,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                **({} if on_gpu else {"bf16": False}),
                **({"optim": "paged_adamw_8bit"} if on_gpu and method == "sft" else {}),
            )
            adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
            CountingTrainer(
                model=random_model(method, options.device, options.tiny),
                args=settings,
                train_dataset=Dataset.from_list(rows),
                processing_class=tiny_tokenizer(),
                peft_config=None if method == "sft" else adapter,
                callbacks=[turns],
            ).train()

    answered(channel, options, order, train)


if __name__ == "__main__":
    main()
