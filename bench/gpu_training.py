"""Training of a Llama-3-8B shape with random weights on one GPU: tokens/s, share of the card's peak, and peak memory.

Methods: LoRA on bfloat16 weights, QLoRA on nf4 weights with double quantisation, and full fine-tuning of the first 8
layers with 8-bit AdamW. Layouts: `packed`, rows of 2048 tokens, two a step; `cybermetric`, eight questions of 100 to
250 tokens that share their first 40, two tokens of each trained on; `cybermetric_32`, as many as 32 of these. cyberlm
trains through its own `fit`: Lightning with every callback of a run; further sides change one thing in it each. TRL's
SFTTrainer with PEFT trains on the same tokens, in four ways: as it comes (gradient checkpointing on), without
checkpointing, without it on batches of like length (train_sampling_strategy), and so with Liger's kernels.

Nothing is downloaded: weights are random numbers drawn on the card, tokens too. Each side is a process that stays
alive and frees the card after its turn; turns go A B A B. In each turn a fresh model trains twice on the same batches:
the first pass warms every shape, the second one counts, from its second step on (the first one starts what a run starts
once), and with --profile one more step is taken apart. What runs out of memory is reported as such, and so is a side
that fails; TRL is left out, with a line saying so, where it is neither installed nor can be. The script fails where
cyberlm does, or where the mean losses of both sides in the first pass differ by more than 2 %. `--tiny --device cpu`
shows that it works, on a tiny shape.

MFU: model FLOPs on non-padding tokens (bench/flops.py) over the card's dense bfloat16 peak. QLoRA and full fine-tuning
recompute activations, which model FLOPs do not count; `cybermetric` counts shared tokens once a question though they
are computed once a batch.
"""

import contextlib
import gc
import importlib
import importlib.util
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import measure
from random_llama import LLAMA_3_8B, SEED, SFT_LAYERS, TINY, random_model, shape

TRL = "trl==1.16.0"
LIGER = "liger-kernel==0.8.5"
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
"""cyberlm's gradient checkpointing: where a card of 80 GB (QLoRA: 9 GiB) would not hold the activations."""
RATES = {"lora": 2e-4, "qlora": 2e-4, "sft": 2e-5}
RANK, ALPHA = 16, 32
SHARED_TOKENS = 40
"""What CyberMetric questions of one prompt begin with: system message and role headers."""
SAME_LOSS = 0.02
OURS = "cyberlm"
OUR_ARMS = ("cyberlm_peft", "cyberlm_liger", "cyberlm_compiled")
"""cyberlm with PEFT's own layers; with Liger's kernels; and with PEFT's own layers in blocks that torch.compile
compiles: what each of them changes."""
_FASTER = {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}
_IN_ORDER = {"train_sampling_strategy": "sequential"}
TRL_ARMS: dict[str, dict[str, Any]] = {
    "trl": _IN_ORDER,
    "trl_no_checkpointing": {**_IN_ORDER, "gradient_checkpointing": False},
    "trl_by_length": _FASTER,
    "trl_liger": {**_FASTER, "use_liger_kernel": True},
}
SIDES = (OURS, *OUR_ARMS, *TRL_ARMS)


class Example(NamedTuple):
    """Token ids, and how many of the last ones are trained on."""

    ids: list[int]
    labels: int


Train = Callable[[Any], None]
"""Trains the turn's model once more on the turn's examples, and tells a `Pass` of each step."""


def main() -> None:
    options = arguments()
    measure.limit_threads(options.threads)
    if options.worker:
        return work(measure.Channel(), options)
    pythons = pythons_of(options.sides)
    peak = peak_flops(options)
    rows: list[list[object]] = [
        ["", "", "tokens/s", "questions/s", "MFU", "GiB (reserved)", "cyberlm is so many times as fast"]
    ]
    found: dict[str, Any] = {}
    body = {"peak_flops": peak, "versions_trl": trl_versions(pythons), "measured": found}
    with contextlib.ExitStack() as stack:
        workers = {side: stack.enter_context(start(options, side, python)) for side, python in pythons.items()}
        for method in options.methods:
            for layout in options.layouts:
                turns = take_turns(options, workers, method, layout)
                found[f"{method} {layout}"] = summary = summarise(turns, peak)
                rows += [[f"{method} {layout}", name, *summary[name]["row"]] for name in turns]
                measure.write_results("gpu_training", options.small or options.tiny, body, options.output)
    named = "tiny shape" if options.tiny else f"Llama-3-8B shape (sft: {SFT_LAYERS} layers)"
    print("\n" + measure.table(f"{named} on {options.device}, random weights", rows))
    for name, summary in found.items():
        for side, one in summary.items():
            for operations in [turn["operations"] for turn in one["turns"] if turn.get("operations")][:1]:
                print("\n" + measure.operations_table(f"{name}, {side}: one step", operations))
    check(found)


def arguments() -> Any:
    parser = measure.parser(__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny shape instead of Llama-3-8B's")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="default %(default)s")
    parser.add_argument("--methods", nargs="+", default=list(RECOMPUTES), choices=list(RECOMPUTES), metavar="METHOD")
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument(
        "--sides", nargs="+", default=[OURS, *TRL_ARMS], choices=SIDES, metavar="SIDE", help=", ".join(SIDES)
    )
    parser.add_argument("--block", type=int, default=8, help="timed steps of one turn, after as many (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="after each turn, the largest operations of one step")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of a card that is not known here")
    parser.add_argument("--output", type=Path, help="JSON file (default bench/results/gpu_training.json)")
    parser.add_argument("--worker", help="(used by the script itself)")
    options = parser.parse_args()
    if options.small:
        options.pairs, options.block = 2, 2
    return options


# ------------------------------------------------------------------------------------------------- turns and figures


def pythons_of(sides: Sequence[str]) -> dict[str, Path]:
    """The Python of each side; TRL's may be an environment of its own, or missing."""
    wanted = [side for side in sides if side in TRL_ARMS]
    peer = trl_python() if wanted else None
    ours = {side: Path(sys.executable) for side in sides if side.startswith(OURS)}
    return ours | (dict.fromkeys(wanted, peer) if peer else {})


def trl_python() -> Path | None:
    if importlib.util.find_spec("trl") is not None:
        return Path(sys.executable)
    try:
        return measure.peer_python("trl", [TRL])
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"TRL is left out: it is not installed and cannot be ({error})")
        return None


def trl_versions(pythons: dict[str, Path]) -> dict[str, str]:
    peer = next((python for side, python in pythons.items() if side in TRL_ARMS), None)
    names = ["trl", "transformers", "peft", "accelerate", "bitsandbytes"]
    return measure.versions_of(peer, names) if peer else {}


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


def start(options: Any, side: str, python: Path) -> measure.Worker:
    given = ["--device", options.device, "--block", str(options.block), *(["--tiny"] if options.tiny else [])]
    return measure.Worker(side, [python, Path(__file__).resolve(), "--worker", side, *given])


def take_turns(options: Any, workers: dict[str, measure.Worker], method: str, layout: str) -> dict[str, Any]:
    def turn(side: str) -> dict[str, Any]:
        try:
            return workers[side].ask("train", method=method, layout=layout, profile=options.profile)
        except RuntimeError as error:  # the worker died: the other sides go on
            return {"error": str(error)[-2000:]}

    alike = layout == "packed"  # rows of one length need no grouping
    sides = {side: lambda side=side: turn(side) for side in workers if not (alike and side == "trl_by_length")}
    return measure.interleave(sides, options.pairs, lambda text: print(f"{method} {layout}, {text}", flush=True))


def summarise(turns: dict[str, list[dict[str, Any]]], peak: float | None) -> dict[str, Any]:
    """Figures, rows of the table and raw turns of one method and layout, by side."""
    summary: dict[str, Any] = {}
    for name, rows in turns.items():
        wrong = next((row["error"] for row in rows if row.get("error")), None)
        if wrong:
            short = wrong if wrong == OUT_OF_MEMORY else "failed: " + wrong.strip().splitlines()[-1]
            summary[name] = {"row": [short, *"-----"], "error": wrong, "turns": rows}
            continue
        rates = [row["tokens"] / row["seconds"] for row in rows]
        asked = [row["questions"] / row["seconds"] for row in rows]
        mfu = [rate * row["flops_a_token"] / peak for rate, row in zip(rates, rows, strict=True)] if peak else None
        gib = {kind: max(row[f"{kind}_bytes"] for row in rows) / 2**30 for kind in ("allocated", "reserved")}
        ours = summary.get(OURS, {}).get("tokens_per_second")
        faster = measure.ratio(ours, rates) if ours and name != OURS else None
        shown = [measure.spread(rates, 4), measure.spread(asked), measure.spread(mfu) if mfu else "-"]
        shown += [f"{gib['allocated']:.2f} ({gib['reserved']:.2f})", str(faster or "-")]
        summary[name] = {
            "row": shown,
            "tokens_per_second": rates,
            "questions_per_second": asked,
            "mfu": mfu,
            "gib": gib,
        }
        summary[name] |= {"ratio": faster and faster._asdict(), "turns": rows}
    return summary


def check(found: dict[str, Any]) -> None:
    """Fails where cyberlm failed, or where two sides trained on other tokens or to another loss.

    Raises:
        Disagreement: If they did.
    """
    for what, summary in found.items():
        if "error" in summary.get(OURS, {}):
            raise SystemExit(f"{what}: {OURS} did not train: {summary[OURS]['row'][0]}")
        first, *others = [one["turns"] for one in summary.values() if "error" not in one] or [[]]
        for rows in others:
            measure.agree(f"{what}: tokens of both sides", first[0]["all_tokens"], rows[0]["all_tokens"], 0)
            mine, other = (sum(row["mean_loss"] for row in side) / len(side) for side in (first, rows))
            measure.agree(f"{what}: mean loss of both sides", mine, other, SAME_LOSS * mine)


# ------------------------------------------------------------------------------------------------- tokens


def packed(rows: int, generator: Any, tiny: bool) -> list[Example]:
    """Rows of one length; as many of their tokens are trained on as in questions of 150 tokens with two each."""
    length = 256 if tiny else 2048
    return [Example(draw(length, generator, tiny), 2 * (length // 150)) for _ in range(rows)]


def cybermetric(rows: int, generator: Any, tiny: bool) -> list[Example]:
    import torch

    lengths = torch.randint(100, 251, (rows,), generator=generator).tolist()
    shared = draw(SHARED_TOKENS, generator, tiny)
    return [Example(shared + draw(length - SHARED_TOKENS, generator, tiny), 2) for length in lengths]


LAYOUTS = {"packed": packed, "cybermetric": cybermetric, "cybermetric_32": cybermetric}
ROWS_A_STEP = {"packed": 2, "cybermetric": 8, "cybermetric_32": 32}


def draw(length: int, generator: Any, tiny: bool) -> list[int]:
    import torch

    return torch.randint(10, (TINY if tiny else LLAMA_3_8B)["vocab_size"], (length,), generator=generator).tolist()


def examples_of(options: Any, layout: str, end_ids: Sequence[int]) -> list[Example]:
    """Those of one pass: the timed steps, one before, one after. Each ends with the tokens that close an answer."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    drawn = LAYOUTS[layout](ROWS_A_STEP[layout] * (options.block + 2), generator, options.tiny)
    return [Example([*ids[: -len(end_ids)], *end_ids], labels) for ids, labels in drawn]


def flops_a_token(options: Any, method: str, examples: Sequence[Example]) -> float:
    from flops import shape_of, training_flops

    lengths = [len(example.ids) for example in examples]
    labels = sum(example.labels for example in examples)
    sizes = shape_of(shape(options.tiny, method))
    return training_flops(sizes, lengths, labels, None if method == "sft" else RANK) / sum(lengths)


# -------------------------------------------------------------------------------------------------------- both sides

OUT_OF_MEMORY = "out of memory"


class PassDone(Exception):
    """All steps of a pass have been taken: what follows in a real run (validation, checkpoints) is left out."""


class Pass:
    """Seconds, tokens, losses and batch shapes of `steps` steps of a training loop after its first; one more may be
    profiled.

    Attributes:
        step_seconds: Of each step, as the host sees it: it may be ahead of a GPU.
        allocated, reserved: Peak bytes of these steps: of torch on a GPU, else of the process.
    """

    def __init__(self, steps: int, profile: bool = False) -> None:
        self.steps, self.profile = steps, profile
        self.tokens: Any = 0
        self.all_tokens: Any = 0
        self.questions = 0
        self.losses: list[Any] = []
        self.shapes: list[tuple[int, ...]] = []
        self.seconds = 0.0
        self.step_seconds: list[float] = []
        self.operations: list[Any] = []
        self.profiler: Any = None

    def _start(self) -> None:
        import torch

        self.on_gpu = torch.cuda.is_available()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.started = self.told = time.perf_counter()

    def step(self, tokens: int, loss: Any, shape: Sequence[int]) -> None:
        """After each optimizer step; `tokens` and `loss` may be tensors, which are read after the last one.

        Raises:
            PassDone: After the last one.
        """
        self.shapes.append(tuple(shape))
        self.all_tokens = self.all_tokens + tokens
        self.losses.append(loss)
        timed = len(self.losses) - 1
        if timed == 0:
            return self._start()
        if timed <= self.steps:
            self.step_seconds.append(time.perf_counter() - self.told)
            self.told = time.perf_counter()
            self.tokens += tokens
            self.questions += shape[0]
            if timed == self.steps:
                self._end()
            return
        if self.profiler is not None:
            self._wait()
            self.profiler.stop()
            self.operations = measure.top_operations(self.profiler, 10)
        raise PassDone

    def _wait(self) -> None:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()

    def _end(self) -> None:
        import resource

        import torch

        self._wait()
        self.seconds = time.perf_counter() - self.started
        self.tokens = int(self.tokens)
        if self.on_gpu:
            self.allocated, self.reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        else:
            self.allocated = self.reserved = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self.profile:
            self.profiler = measure.profiler()
            self.profiler.start()


def work(channel: measure.Channel, options: Any) -> None:
    """Answers orders until no more come; a turn's model is gone before the next."""
    import torch

    ours = options.worker.startswith(OURS)
    prepare = cyberlm_trains if ours else trl_trains
    importlib.import_module("cyberlm_side" if ours else "trl.trainer.sft_trainer")  # while other sides do so too
    end_ids = end_of_answer()
    while True:
        order = channel.receive()
        examples = examples_of(options, order["layout"], end_ids)
        try:
            answer = turn(options, order, examples, prepare)
        except torch.OutOfMemoryError:
            answer = {"error": OUT_OF_MEMORY}
        free(options.device)
        channel.reply(**answer)


def turn(options: Any, order: dict[str, Any], examples: list[Example], prepare: Any) -> dict[str, Any]:
    method = order["method"]
    model = random_model(method, options.device, options.tiny)
    held = weakref.ref(model)
    train: Train | None = prepare(options, order, examples, model)
    passes = [Pass(options.block), Pass(options.block, order["profile"])]
    for each in passes:
        with contextlib.suppress(PassDone):
            train(each)  # type: ignore[misc]
    del train, model
    free(options.device)
    if held() is not None:
        raise RuntimeError(f"{options.worker} still holds the model of a turn that is over")
    warm, timed = passes
    if cold := set(timed.shapes) - set(warm.shapes):
        raise RuntimeError(f"{options.worker} timed shapes that had not been warmed: {sorted(cold)}")
    losses = [[float(loss) for loss in each.losses] for each in passes]
    return {
        "seconds": timed.seconds,
        "step_seconds": timed.step_seconds,
        "tokens": timed.tokens,
        "all_tokens": int(timed.all_tokens),
        "questions": timed.questions,
        "losses": losses,
        "mean_loss": sum(losses[0]) / len(losses[0]),  # later ones depend on what an optimizer is started anew with
        "shapes": timed.shapes,
        "allocated_bytes": timed.allocated,
        "reserved_bytes": timed.reserved,
        "operations": timed.operations,
        "flops_a_token": flops_a_token(options, method, examples),
    }


def free(device: str) -> None:
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def end_of_answer() -> tuple[int, ...]:
    from cyberlm.models.tiny import tiny_tokenizer

    return (tiny_tokenizer().convert_tokens_to_ids("<|eot_id|>"),)


def cyberlm_trains(options: Any, order: dict[str, Any], examples: list[Example], model: Any) -> Train:
    import torch
    from cyberlm_side import config_of, fit_with, pass_callback

    from cyberlm.models.loaded import open_causal
    from cyberlm.models.methods.method import attach
    from cyberlm.models.tiny import tiny_tokenizer
    from cyberlm.tasks.prompts import Prompt

    method = order["method"]
    lora = [] if method == "sft" else [f"method.lora.rank={RANK}", f"method.lora.alpha={ALPHA}"]
    config = config_of(
        *("model=tiny_random", "prompt=letter", f"method={method}", *lora),
        *(f"trainer.accelerator={options.device}", f"trainer.gradient_checkpointing={RECOMPUTES[method]}"),
        *(f"optim.learning_rate={RATES[method]}", "optim.warmup_fraction=0"),
        f"data.micro_batch_size={ROWS_A_STEP[order['layout']]}",
        *(["optim=paged_adamw_8bit", "optim.name=adamw_8bit"] if method == "sft" and options.device == "cuda" else []),
    )
    prompt = Prompt(config.prompt, tiny_tokenizer())
    torch.backends.cuda.enable_cudnn_sdp(False)  # as load_base does, which did not load this model
    torch.manual_seed(SEED)
    loaded = attach(open_causal(model.eval(), "random", "random"), config)
    change(options.worker, loaded)
    encoded = [encode(example, len(prompt.end_ids)) for example in examples]
    parts = {"train": encoded, "validation": encoded[:1]}

    def train(recorder: Pass) -> None:
        with tempfile.TemporaryDirectory() as folder:
            fit_with(pass_callback(recorder), config, Path(folder), loaded, prompt, parts)

    return train


def change(side: str, loaded: Any) -> None:
    """Makes cyberlm's model that of one of `OUR_ARMS`."""
    from cyberlm.models.liger import choose_kernels

    if side in ("cyberlm_peft", "cyberlm_compiled"):
        for module in loaded.model.modules():
            if type(module).__name__.startswith("FusedLora"):
                module.__class__ = type(module).__bases__[0]
    if side == "cyberlm_liger":
        choose_kernels(loaded.causal, liger=True)
    if side == "cyberlm_compiled":
        for layer in loaded.backbone.layers:
            layer.compile()


def encode(example: Example, end: int) -> Any:
    """As a tokenised question whose right answer, with the tokens that close it, is what is trained on."""
    from cyberlm.tasks.prompts import EncodedQuestion

    cut = len(example.ids) - example.labels
    answer = tuple(example.ids[cut : len(example.ids) - end])
    return EncodedQuestion(tuple(example.ids[:cut]), (answer, answer), (len(answer),) * 2, 0)


def trl_trains(options: Any, order: dict[str, Any], examples: list[Example], model: Any) -> Train:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from cyberlm.models.tiny import tiny_tokenizer

    method, on_gpu = order["method"], options.device == "cuda"

    class Turns(TrainerCallback):
        recorder: Pass
        tokens: Any = 0
        loss: Any = None
        shape: tuple[int, ...] = ()

        def on_step_end(self, *unused: Any, **kept: Any) -> None:
            self.recorder.step(self.tokens, self.loss, self.shape)

    turns = Turns()

    class CountingTrainer(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *others: Any) -> Any:
            turns.tokens, turns.shape = inputs["attention_mask"].sum(), tuple(inputs["input_ids"].shape)  # no sync
            turns.loss = super().training_step(model, inputs, *others)
            return turns.loss

    rows = [{"input_ids": ids, "labels": [-100] * (len(ids) - labels) + ids[-labels:]} for ids, labels in examples]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": ROWS_A_STEP[order["layout"]],
        "num_train_epochs": 1,
        "learning_rate": RATES[method],
        "lr_scheduler_type": "cosine",
        "max_length": None,
        "use_cpu": not on_gpu,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **({} if on_gpu else {"bf16": False}),
        **({"optim": "adamw_8bit"} if on_gpu and method == "sft" else {}),
        **TRL_ARMS[options.worker],
    }
    adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = CountingTrainer(
        model=model,
        args=SFTConfig(output_dir=tempfile.mkdtemp(), **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=None if method == "sft" else adapter,
        callbacks=[turns],
    )

    def train(recorder: Pass) -> None:
        turns.recorder = recorder
        torch.manual_seed(SEED)  # the sampler by length draws the same batches in both passes
        trainer.train()

    return train


if __name__ == "__main__":
    main()
