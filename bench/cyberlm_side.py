"""cyberlm's side of every measurement: its configuration, its questions, and its training loop cut into blocks."""

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import LambdaCallback
from measure import Blocks

from cyberlm.config.commands import register_schemas
from cyberlm.config.compose import conf_folder
from cyberlm.config.rules import build_config
from cyberlm.config.schema import TrainConfig
from cyberlm.data.batches import AnswerBatch, AnswerCollator
from cyberlm.data.sources import load_sources
from cyberlm.evaluation.scoring import eval_mode
from cyberlm.models.loaded import LoadedModel
from cyberlm.runs.run_folder import register_resolvers
from cyberlm.runtime.cache import cache_folder
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.tasks.task import Example, make_task
from cyberlm.training.callbacks.meters import CostMeter
from cyberlm.training.fit import fit
from cyberlm.training.losses import answer_nll_sum


def config_of(*overrides: str) -> TrainConfig:
    """A checked configuration, without loggers and further callbacks, on the CPU unless told otherwise."""
    register_schemas()
    register_resolvers()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        quiet = ("logger=none", "callbacks=none", "trainer.accelerator=cpu")
        return build_config(hydra.compose("train", [*quiet, *overrides]), TrainConfig)


def cybermetric(count: int, size: int = 2000) -> tuple[Example, ...]:
    """The first questions of a CyberMetric file (CYBERLM_DATA_DIR, or downloaded)."""
    return _questions("data=cybermetric", f"data.size={size}")[:count]


def sample(count: int) -> tuple[Example, ...]:
    """The first questions of the free sample, from its beginning again where there are fewer."""
    return tuple(itertools.islice(itertools.cycle(_questions("data=sample")), count))


def _questions(*overrides: str) -> tuple[Example, ...]:
    config = config_of(*overrides)
    (main,) = load_sources(config.data, make_task(config))
    return main.questions


def plain_folder(loaded: LoadedModel, prompt: Prompt) -> Path:
    """Base weights and tokenizer as a transformers folder, which peers load."""
    folder = cache_folder() / "bench" / "models" / loaded.weights_hash[:16]
    if not (folder / "tokenizer_config.json").is_file():
        loaded.causal.save_pretrained(folder)
        prompt.tokenizer.save_pretrained(folder)
    return folder


class BlockCallback(L.Callback):
    """Tells `blocks` of each optimizer step (no accumulation)."""

    def __init__(self, make: Callable[[], Blocks]) -> None:
        self.make = make
        self.blocks: Blocks | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.blocks = self.make()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: AnswerBatch, batch_idx: int
    ) -> None:
        assert self.blocks is not None
        self.blocks.step(tokens_of(batch), outputs["loss"])


def pass_callback(recorder: Any) -> L.Callback:
    """Tells a `gpu_training.Pass` of each optimizer step (no accumulation)."""

    def told(trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: AnswerBatch, batch_idx: int) -> None:
        shape = (len(batch.input_ids), len(batch.prefix_ids), batch.input_ids.shape[1])  # rows, shared, width
        recorder.step(tokens_of(batch), outputs["loss"].detach(), shape)

    return LambdaCallback(on_train_batch_end=told)


def tokens_of(batch: AnswerBatch) -> int:
    """Tokens of a batch's examples; the last one of each is a target only, and counted as peers count it."""
    return batch.tokens + len(batch.input_ids)


_callback: L.Callback | None = None


def callback_of_fit() -> L.Callback:
    """What `config.callbacks` names; Hydra calls it."""
    assert _callback is not None
    return _callback


def fit_with(
    callback: L.Callback,
    config: TrainConfig,
    folder: Path,
    loaded: LoadedModel,
    prompt: Prompt,
    encoded: Mapping[str, Sequence[EncodedQuestion]],
) -> None:
    """cyberlm's real training (`cyberlm.training.fit.fit`) with one more callback.

    Args:
        folder: Of the run.
        encoded: `train` and `validation`.
    """
    global _callback
    _callback = callback
    config.callbacks = {"bench": {"_target_": "cyberlm_side.callback_of_fit"}}
    try:
        fit(config, folder, loaded, prompt, encoded, [], CostMeter())
    finally:
        _callback = None


def fit_in_blocks(
    config: TrainConfig,
    loaded: LoadedModel,
    prompt: Prompt,
    encoded: Mapping[str, Sequence[EncodedQuestion]],
    make: Callable[[], Blocks],
) -> None:
    """The same, in blocks; `make` is called when training starts, for these."""
    with tempfile.TemporaryDirectory() as folder:
        fit_with(BlockCallback(make), config, Path(folder), loaded, prompt, encoded)


def answer_nll(loaded: LoadedModel, prompt: Prompt, questions: Sequence[EncodedQuestion]) -> float:
    """Mean negative log-likelihood of the answers' tokens (nats), end of turn included: the training loss."""
    collator = AnswerCollator(prompt.end_ids, share_prefix=False)
    total, tokens = torch.zeros(()), 0
    with eval_mode(loaded.model):
        for question in questions:
            batch = collator(([question], 1))
            total += answer_nll_sum(loaded, batch)
            tokens += len(batch.targets)
    return float(total) / tokens
