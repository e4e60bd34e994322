"""Steps of gpu_accept.py that compute in their own process: hardware, float32, bfloat16, nf4, 8-bit states, syncs."""

import contextlib
import copy
import csv
import gc
import importlib.metadata
import os
import re
import shutil
import tempfile
import time
import traceback
import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from cyberlm_side import config_of, fit_with
from gpu_accept import VARIANTS, Report
from measure import ROOT, machine
from pack_gpu_kit import LACKING
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cyberlm.config.schema import OptimizerName, TrainConfig
from cyberlm.data.batches import AnswerCollator, collate_scoring
from cyberlm.data.sources import load_sources
from cyberlm.evaluation.scoring import eval_mode, option_log_probs
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import load_base, load_tokenizer
from cyberlm.models.methods.method import attach, load_for_training
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.tasks.task import Example, make_task
from cyberlm.training.losses import answer_nll_sum, hidden_states

SIZES = (
    *("model.tiny.hidden_size=512", "model.tiny.intermediate_size=1536", "model.tiny.num_hidden_layers=4"),
    *("model.tiny.num_attention_heads=8", "model.tiny.num_key_value_heads=4"),
)
"""Of the small Llama on a GPU; --small takes that of model=tiny_random."""


# -------------------------------------------------------------------------------------------------- what steps share


def small_config(options: Any, *overrides: str) -> TrainConfig:
    sizes = () if options.small else SIZES
    device = f"trainer.accelerator={options.device}"
    return config_of("model=tiny_random", *sizes, "data=sample", "prompt=letter", device, *overrides)


def questions(config: TrainConfig, count: int) -> tuple[Prompt, list[EncodedQuestion]]:
    prompt = Prompt(config.prompt, load_tokenizer(config.model))
    (main,) = load_sources(config.data, make_task(config))
    return prompt, list(prompt.encode(main.questions[:count]))


def adapted(config: TrainConfig, device: str) -> LoadedModel:
    """The configuration's model with its adapter, whose B, which begins at zero, gets random numbers."""
    loaded = attach(load_for_training(config, torch.device(device)), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                drawn = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
                parameter.copy_(drawn)
    return loaded


def on(batch: Any, device: str) -> Any:
    """A batch with its tensors on the device."""
    return type(batch)(*(part.to(device) if isinstance(part, Tensor) else part for part in batch))


def distance(found: Tensor, reference: Tensor) -> float:
    """Norm of the difference over that of the reference, in float64."""
    found, reference = (tensor.detach().double().cpu().flatten() for tensor in (found, reference))
    return float((found - reference).norm() / reference.norm())


class Pass(NamedTuple):
    """Mean loss of the answers' tokens, its gradient, and the logits (N, V) that predict these tokens."""

    loss: Tensor
    gradients: Tensor
    logits: Tensor


def plain_pass(loaded: LoadedModel, encoded: Sequence[EncodedQuestion], end_ids: Sequence[int]) -> Pass:
    """The reference: whole logits of transformers' model in float64 on the CPU, one question at a time."""
    model = copy.deepcopy(loaded.model).double().cpu().train()
    collator = AnswerCollator(end_ids, share_prefix=False)
    total, chosen, labels_seen = torch.zeros((), dtype=torch.float64), [], 0
    for question in encoded:
        ids, trained = collator.example(question)
        labels = len(trained)
        logits = model(input_ids=torch.tensor([ids])).logits[0, -labels - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(ids[-labels:]), reduction="sum")
        chosen.append(logits.detach())
        labels_seen += labels
    (total / labels_seen).backward()
    return Pass(total.detach() / labels_seen, gradients_of(model), torch.cat(chosen))


def our_pass(
    loaded: LoadedModel, encoded: Sequence[EncodedQuestion], end_ids: Sequence[int], *, batch: int, prefix: bool
) -> Pass:
    """cyberlm's: hidden states of the backbone, the head on the answers' places, `batch` questions at once."""
    collator = AnswerCollator(end_ids, share_prefix=prefix)
    loaded.model.train()
    total, chosen, labels = torch.zeros(()), [], 0
    for rows in in_parts(encoded, batch):
        prepared = on(collator((list(rows), 1)), loaded.device.type)
        total = total + answer_nll_sum(loaded, prepared).cpu()
        with torch.no_grad():
            hidden = hidden_states(loaded, prepared)
        chosen.append(loaded.head(hidden.flatten(0, 1)[prepared.answer_index]).detach().float().cpu())
        labels += len(prepared.targets)
    (total / labels).backward()
    found = Pass(total.detach() / labels, gradients_of(loaded.model), torch.cat(chosen))
    loaded.model.zero_grad()
    return found


def in_parts(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def gradients_of(model: torch.nn.Module) -> Tensor:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([gradient.detach().double().cpu().flatten() for gradient in gradients])


# ------------------------------------------------------------------------------------------------------------- steps


def step_0(report: Report, options: Any) -> None:
    """Versions; a square product in bfloat16 and a copy of a large tensor; the kit's packages come from one place."""
    report.detail(machine=machine())
    size, repeats = (512, 3) if options.small else (8192, 20)
    a, b = (torch.randn(size, size, device=options.device, dtype=torch.bfloat16) for _ in range(2))
    report.tell(product_tflops=2 * size**3 / seconds_of(lambda: a @ b, repeats, options.device) / 1e12)
    source = torch.randn(2**22 if options.small else 2**30, device=options.device)
    target = torch.empty_like(source)
    copied = seconds_of(lambda: target.copy_(source), repeats, options.device)
    report.tell(copy_tb_a_second=2 * source.numel() * source.element_size() / copied / 1e12)
    places = {name: str(importlib.metadata.distribution(name).locate_file("")) for name in LACKING}
    report.detail(kit_packages=places)
    report.tell(foreign_packages=len(set(places.values())) - 1)


def seconds_of(work: Any, repeats: int, device: str) -> float:
    for _ in range(3):
        work()
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - began) / repeats


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def step_1(report: Report, options: Any) -> None:
    """cyberlm in float32 on the device against whole logits in float64 on the CPU: one by one, in a batch, with the
    shared beginning computed once, with activations recomputed."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    config = small_config(options, "model.dtype=float32")
    prompt, encoded = questions(config, 8)
    reference = plain_pass(adapted(config, "cpu"), encoded, prompt.end_ids)
    for variant in VARIANTS:
        config.trainer.gradient_checkpointing = variant == "checkpointing"
        loaded = adapted(config, options.device)
        batch, prefix = (1 if variant == "alone" else 8), variant == "prefix"
        found = our_pass(loaded, encoded, prompt.end_ids, batch=batch, prefix=prefix)
        if variant == "batch":
            report.tell(logits=distance(found.logits, reference.logits))
        distances = zip(("loss", "gradients"), found[:2], reference[:2], strict=True)
        report.tell(**{f"{what}_{variant}": distance(one, other) for what, one, other in distances})


LEARNED, MAX_STEPS = 0.35, 300
"""Nats a trained token at which step 2 stops training, and its most steps."""


def step_2(report: Report, options: Any) -> None:
    """bfloat16 weights under autocast on the device against the same weights in float32 on the CPU: the loss, the
    letters chosen, and ties.

    The model has learned most letters first: those of a random one lie within rounding of each other, as no trained
    one's do.
    """
    config = small_config(
        *(options, "method=sft", "model.dtype=float32", "prompt.system=", "prompt.question='{question} {options}'")
    )
    prompt, collated = Prompt(config.prompt, load_tokenizer(config.model)), []
    encoded = list(prompt.encode(short_questions(64 if options.small else 256)))
    for part in in_parts(encoded, 64):
        collated.append(AnswerCollator(prompt.end_ids, share_prefix=True)((list(part), 1)))

    def loss(model: LoadedModel, step: int) -> Tensor:
        batch = on(collated[step % len(collated)], model.device.type)
        return answer_nll_sum(model, batch) / len(batch.targets)

    def scores(model: LoadedModel) -> Tensor:
        batches = [on(collate_scoring(part), model.device.type) for part in in_parts(encoded, 64)]
        return torch.cat([option_log_probs(model, batch).cpu() for batch in batches])

    exact = load_base(config.model, config.quant, torch.device("cpu"), trains_all_weights=True)
    loaded = load_base(config.model, config.quant, torch.device(options.device), trains_all_weights=True)
    report.detail(questions=len(encoded), steps=memorise(loaded, loss, 3e-3 if options.small else 1e-3))
    loaded.causal.to(torch.bfloat16)
    exact.causal.load_state_dict(loaded.causal.state_dict())
    with eval_mode(exact.model):
        right_loss, right = float(loss(exact, 0)), scores(exact)
    with eval_mode(loaded.model), torch.autocast(options.device, torch.bfloat16):
        rough_loss, rough = float(loss(loaded, 0)), scores(loaded)
    best = rough.topk(2, dim=-1).values
    report.tell(loss=abs(rough_loss / right_loss - 1))
    report.tell(letters_same=(rough.argmax(-1) == right.argmax(-1)).double().mean())
    report.tell(ties=(best[:, 0] == best[:, 1]).double().mean())
    report.detail(loss_float32=right_loss, scores_apart=float((rough - right).abs().max()))


def short_questions(count: int) -> list[Example]:
    """Questions that can only be memorised."""
    words, options = ("key", "hash", "salt", "nonce", "token", "proxy", "vault"), ("one", "two", "three", "four")
    return [Example(str(k), f"{words[k % 7]} {k}?", options, k * 7 // 3 % 4) for k in range(count)]


def memorise(loaded: LoadedModel, loss: Any, learning_rate: float) -> int:
    """Trains all weights until the loss of a step is at most `LEARNED`; returns the steps."""
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=learning_rate)
    for step in range(MAX_STEPS):
        now = loss(loaded, step)
        if float(now) <= LEARNED:
            break
        optimizer.zero_grad()
        now.backward()
        optimizer.step()
    return step


def step_3(report: Report, options: Any) -> None:
    """The same packed bytes, expanded on the device and by the formula (arXiv 2305.14314, appendix A) in plain torch;
    layers and the whole model against plain matrices of these weights."""
    from bitsandbytes import matmul_4bit
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    config = small_config(options, "method=qlora", "quant.compute_dtype=float32", "model.dtype=float32")
    prompt, encoded = questions(config, 8)
    on_cpu, loaded = adapted(config, "cpu"), adapted(config, options.device)
    layers = {name: module for name, module in on_cpu.causal.named_modules() if isinstance(module, Linear4bit)}
    expanded, same, bytes_, apart = {}, 0, 0, []
    for name, layer in layers.items():
        other: Any = loaded.causal.get_submodule(name)
        same += int((other.weight.data.cpu() == layer.weight.data).sum())
        bytes_ += layer.weight.numel()
        copy_packed(layer.weight, other.weight)
        expanded[name] = expand(layer.weight)
        found = dequantize_4bit(other.weight.data, other.weight.quant_state).cpu()
        apart.append(float((found - expanded[name]).abs().max() / expanded[name].abs().max()))
    report.tell(expansion=max(apart), bytes_same=same / bytes_)
    plain = adapted(small_config(options, "method=lora", "model.dtype=float32"), "cpu")
    with torch.no_grad():
        for name, weight in expanded.items():
            plain.causal.get_submodule(name).weight.copy_(weight)
    right = plain_pass(plain, encoded, prompt.end_ids)
    got = our_pass(loaded, encoded, prompt.end_ids, batch=8, prefix=True)
    report.tell(logits=distance(got.logits, right.logits), gradients=distance(got.gradients, right.gradients))
    name, layer = next((name, loaded.causal.get_submodule(name)) for name in layers)
    x = torch.randn(64, expanded[name].shape[1], generator=torch.Generator().manual_seed(0))
    half = x.to(options.device, torch.bfloat16)
    reference = x.bfloat16().double() @ expanded[name].double().T
    for what, rows in (("layer", 64), ("layer_one_row", 1)):
        with torch.inference_mode():
            got = matmul_4bit(half[:rows], layer.weight.t(), quant_state=layer.weight.quant_state)
        report.tell(**{what: distance(got, reference[:rows])})


def copy_packed(source: Any, target: Any) -> None:
    """Packed bytes and scales of one 4-bit weight, put into another of the same shape."""
    target.data.copy_(source.data)
    ours, theirs = source.quant_state, target.quant_state
    theirs.absmax.copy_(ours.absmax)
    theirs.offset.copy_(ours.offset)
    theirs.state2.absmax.copy_(ours.state2.absmax)


def expand(weight: Any) -> Tensor:
    """nf4 to float32: code book, times the block's scale, which is itself quantised to 8 bits."""
    state, nested = weight.quant_state, weight.quant_state.state2
    packed = weight.data.flatten().to(torch.uint8)
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten().long()
    outer = nested.absmax.repeat_interleave(nested.blocksize)[: state.absmax.numel()]
    scales = nested.code[state.absmax.long()] * outer + state.offset
    values = state.code[codes] * scales.repeat_interleave(state.blocksize)[: codes.numel()]
    expanded: Tensor = values.float().view(state.shape)
    return expanded


# ---------------------------------------------------------------------------------------------- 7: 8-bit states

STEPS_TAKEN, STEPS_BEFORE = 8, 4
MIN_8BIT = 4096
"""Numbers of a weight from which bitsandbytes keeps its states in 8 bits."""


class States(L.Callback):
    """Copies the run's folder as a kill after `STEPS_BEFORE` steps would leave it, and looks at the states at the end.

    Args:
        folder: Of the run.
        copied: Where its copy goes; None for a run that is resumed.

    Attributes:
        uint8, paged: Shares of the optimizer's large states that are so.
        held: Bytes: all that torch has allocated on a GPU, else the states.
    """

    def __init__(self, folder: Path, copied: Path | None) -> None:
        self.folder, self.copied = folder, copied
        self.uint8 = self.paged = 0.0
        self.held = 0
        self.live: list[tuple[int, str]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.copied is not None and batch_idx == STEPS_BEFORE:
            shutil.copytree(self.folder, self.copied)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        large = [state for p, state in trainer.optimizers[0].state.items() if p.numel() >= MIN_8BIT]
        states = [state[name] for state in large for name in ("state1", "state2")]
        self.uint8 = sum(state.dtype == torch.uint8 for state in states) / len(states)
        self.paged = sum(bool(getattr(state, "is_paged", False)) for state in states) / len(states)
        on_gpu = pl_module.device.type == "cuda"
        gc.collect()
        self.live = live_tensors() if on_gpu else []
        self.held = torch.cuda.memory_allocated() if on_gpu else sum(state.nbytes for state in states)


def live_tensors() -> list[tuple[int, str]]:
    """Bytes and kind of what lies on the GPU, the ten largest sums: what a difference of memory is made of."""
    seen: dict[int, Tensor] = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, torch.nn.Parameter) and thing.is_cuda:
            seen.setdefault(thing.untyped_storage().data_ptr(), thing)
    kinds: Counter[str] = Counter()
    for tensor in seen.values():
        kinds[f"{tensor.dtype} {tuple(tensor.shape)} {type(tensor).__name__}"] += tensor.untyped_storage().nbytes()
    return [(size, kind) for kind, size in kinds.most_common(10)]


def step_7(report: Report, options: Any) -> None:
    """Full fine-tuning with 8-bit AdamW states, and the same resumed: states stay 8-bit, and paged ones paged."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # as train.py sets it for trainer.deterministic
    first, again, apart = trained_twice(options, "adamw_8bit")
    report.detail(held={"first": first.held, "resumed": again.held}, live={"first": first.live, "resumed": again.live})
    report.tell(uint8=first.uint8, uint8_resumed=again.uint8)
    report.tell(memory_off=abs(again.held / first.held - 1), losses_apart=apart)
    if options.device != "cuda":
        return report.skip("paged states are memory that CUDA manages", "paged_resumed")
    first, again, _ = trained_twice(options, "paged_adamw_8bit")
    report.detail(paged=first.paged)
    report.tell(paged_resumed=again.paged / first.paged)


def trained_twice(options: Any, name: str) -> tuple[States, States, float]:
    """A run, the same resumed from its middle, and how far the losses of any step are apart."""
    config = small_config(
        *(options, "method=sft", "data.micro_batch_size=4"),
        *("trainer.checkpoint_every_n_steps=1", "trainer.keep_checkpoints=2", "trainer.deterministic=true"),
    )
    config.optim.name = OptimizerName[name]  # which a configuration for the CPU may not name; bitsandbytes has it there
    prompt, encoded = questions(config, 4 * STEPS_TAKEN)
    parts = {"train": encoded, "validation": encoded[:4]}
    with tempfile.TemporaryDirectory() as place:
        whole, resumed = Path(place) / "whole", Path(place) / "resumed"
        whole.mkdir()
        found = []
        for folder, copied in ((whole, resumed), (resumed, None)):
            config.trainer.resume = None if copied else str(folder)
            base = load_base(config.model, config.quant, torch.device(options.device), trains_all_weights=True)
            watch = States(folder, copied)
            fit_with(watch, config, folder, attach(base, config), prompt, parts)
            found.append(watch)
            weight = weakref.ref(next(base.model.parameters()))
            del base, watch.log, watch.log_dict  # Lightning's, which hold the model
            gc.collect()  # what the first run held must not count in the second
            if weight() is not None:
                raise RuntimeError("the model of a run that is over is still held")
        losses = [losses_of(folder) for folder in (whole, resumed)]
    return found[0], found[1], max(abs(a - b) for a, b in zip(*losses, strict=True))


def losses_of(run: Path) -> list[float]:
    """The training loss of each step in metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


# --------------------------------------------------------------------------------------------------- 8: syncs

WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2")
"""Operations whose result's value or size the host must know: on a GPU it waits there for all work before them."""
FIRST_STEP, STEPS_WATCHED = 3, 3
NOT_TOLD = re.compile(r"site-packages/torch/|/warnings\.py$")
"""Files through which a wait goes, but that do not ask for it."""


class SyncCounter:
    """Counts, by file and line, where the host waits for the device; on a CPU, where it would."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.places: Counter[str] = Counter()

    def note(self, what: str) -> None:
        frames = [frame for frame in traceback.extract_stack()[:-2] if not NOT_TOLD.search(frame.filename)]
        ours = [frame for frame in frames if frame.filename.startswith(str(ROOT / "cyberlm"))]
        inner = [frame for frame in frames if frame.filename != __file__]
        told = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*ours[-1:], *inner[-3:])]
        self.places[f"{what} at {', '.join(dict.fromkeys(told))}"] += 1

    def start(self) -> None:
        if not self.on_gpu:
            self.modes = contextlib.ExitStack()
            self.modes.enter_context(_Waits(self))
            self.modes.enter_context(_Reads(self))
            return
        self.catcher = warnings.catch_warnings()
        self.catcher.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._warned
        torch.cuda.set_sync_debug_mode("warn")

    def stop(self) -> None:
        if not self.on_gpu:
            return self.modes.close()
        torch.cuda.set_sync_debug_mode("default")
        self.catcher.__exit__(None, None, None)

    def _warned(self, message: Any, *unused: Any, **also: Any) -> None:
        if "called a synchronizing" in str(message):  # and not the advice that this mode is a prototype
            self.note("wait")


class _Reads(TorchFunctionMode):
    """Methods that copy a tensor to the host; on a CPU no operation stands behind them."""

    def __init__(self, counter: SyncCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.cpu):
            self.counter.note(func.__name__)
        return func(*args, **(kwargs or {}))


class _Waits(TorchDispatchMode):
    def __init__(self, counter: SyncCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in WAITING:
            self.counter.note(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def step_8(report: Report, options: Any) -> None:
    """Three LoRA steps of a real run, after as many: where the host waits for the device."""
    config = small_config(options, "data.micro_batch_size=4")
    prompt, encoded = questions(config, 4 * (FIRST_STEP + STEPS_WATCHED + 2))
    base = load_base(config.model, config.quant, torch.device(options.device))
    counter = SyncCounter(options.device)

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == FIRST_STEP:
                counter.start()
            elif batch_idx == FIRST_STEP + STEPS_WATCHED:
                counter.stop()

    with tempfile.TemporaryDirectory() as folder:
        parts = {"train": encoded, "validation": encoded[:4]}
        fit_with(Watch(), config, Path(folder), attach(base, config), prompt, parts)
    report.detail(places=dict(counter.places.most_common()))
    report.tell(a_step=counter.places.total() / STEPS_WATCHED)
    for place, count in counter.places.most_common():
        print(f"{count} x {place}")
