"""Training itself: the model made trainable, Lightning's trainer, and the weights that did best put back."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import hydra
import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from cyberlm import loggers as experiment_loggers
from cyberlm import ranks
from cyberlm.callbacks import CostMeter, RandomState, TrainingProgress
from cyberlm.config import Strategy, TrainConfig
from cyberlm.data.module import QuestionData
from cyberlm.errors import ConfigError, Problem
from cyberlm.models import LoadedModel, add_adapter, load_base, trained_tensors
from cyberlm.module import Tuner
from cyberlm.progress import console
from cyberlm.prompts import EncodedQuestion, Prompt
from cyberlm.runs.team import lightning_arguments

CHECKPOINTS = "checkpoints"


def prepare(loaded: LoadedModel, config: TrainConfig) -> LoadedModel:
    """Adds the adapter, or makes every weight trainable."""
    checkpointing = config.trainer.gradient_checkpointing
    if config.method.lora is not None:
        return add_adapter(loaded, config.method.lora, gradient_checkpointing=checkpointing)
    if checkpointing:
        loaded.causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loaded.causal.requires_grad_(True)
    return loaded


def fit(
    config: TrainConfig,
    folder: Path,
    loaded: LoadedModel,
    prompt: Prompt,
    encoded: Mapping[str, Sequence[EncodedQuestion]],
    loggers: Sequence[Logger],
    meter: CostMeter,
) -> tuple[float, int]:
    """Trains, and leaves the model with the weights that did best in validation.

    Returns:
        The best validation accuracy, and the optimizer steps taken.
    """
    trainer_config = config.trainer
    sharded = trainer_config.strategy is Strategy.fsdp2
    share_validation = not sharded and len(encoded["validation"]) >= ranks.size()
    data = QuestionData(
        config.data,
        encoded["train"],
        encoded["validation"],
        prompt.end_ids,
        trainer_config.accumulate_grad_batches,
        config.seed,
        share_prefix=_shares_prefix(config),
        share_validation=share_validation,
    )
    _check_interval(config, len(encoded["train"]))
    tuner = Tuner(
        *(loaded, config.optim, config.evaluation.option_score), share_validation=share_validation, sharded=sharded
    )
    best = ModelCheckpoint(
        dirpath=folder / CHECKPOINTS,
        filename="best",
        monitor="val/accuracy",
        mode="max",
        save_last="link",
        enable_version_counter=False,
    )
    regular = ModelCheckpoint(
        dirpath=folder / CHECKPOINTS,
        filename="step",
        every_n_train_steps=trainer_config.checkpoint_every_n_steps,
        enable_version_counter=False,
    )
    with _calm_lightning():
        trainer = L.Trainer(
            accelerator="gpu" if loaded.device.type == "cuda" else "cpu",
            **lightning_arguments(trainer_config),
            precision=_precision(config, loaded.device),  # type: ignore[arg-type]
            max_epochs=trainer_config.max_epochs,
            max_steps=trainer_config.max_steps or -1,
            accumulate_grad_batches=trainer_config.accumulate_grad_batches,
            val_check_interval=trainer_config.val_check_interval,
            gradient_clip_val=config.optim.max_grad_norm or None,
            log_every_n_steps=trainer_config.log_every_n_steps,
            logger=[experiment_loggers.csv_logger(folder), *loggers],
            callbacks=[
                TrainingProgress(len(encoded["train"])),
                meter,
                RandomState(),
                *(hydra.utils.instantiate(entry, _convert_="all") for entry in config.callbacks.values()),
                best,
                regular,
            ],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        point = _resume_point(config, folder)
        if sharded and point is not None:
            tuner.check_names(torch.load(point, map_location="cpu", weights_only=True, mmap=True))
        trainer.fit(tuner, data, ckpt_path=point, weights_only=True)
        if best.best_model_score is None:  # max_steps came before the first validation
            accuracy = float(trainer.validate(tuner, data, verbose=False)[0]["val/accuracy"])
        else:
            accuracy = float(best.best_model_score)
        if sharded:
            _put_together(config, loaded, tuner)
        if best.best_model_score is not None:
            _restore(tuner, Path(best.best_model_path))
    return accuracy, trainer.global_step


def _shares_prefix(config: TrainConfig) -> bool:
    """Not with dropout, which each example draws for itself, nor with checkpointing, which allows no cache.

    Nor with FSDP2, whose processes must call the same layers equally often: batches need not share a prefix.
    """
    dropout = config.method.lora is not None and config.method.lora.dropout > 0
    trainer = config.trainer
    return not (dropout or trainer.gradient_checkpointing or trainer.strategy is Strategy.fsdp2)


def _check_interval(config: TrainConfig, questions: int) -> None:
    every = config.trainer.val_check_interval
    batches = -(-questions // (config.data.micro_batch_size * config.trainer.devices))
    if every is not None and every > batches:
        raise ConfigError(
            "Validation would never come:",
            [
                Problem(
                    f"trainer.val_check_interval={every}, but an epoch has {batches} micro-batches a process",
                    f"at most {batches}, or null for once an epoch",
                    "trainer.val_check_interval=null",
                )
            ],
        )


def _precision(config: TrainConfig, device: torch.device) -> str:
    if config.trainer.precision != "auto":
        return config.trainer.precision
    return "bf16-mixed" if device.type == "cuda" else "32-true"


@contextlib.contextmanager
def _calm_lightning() -> Iterator[None]:
    """Leaves out advice that does not hold here, and deprecations between libraries that no one here can mend."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*Checkpoint directory .* exists and is not empty.*",
            ".*Experiment logs directory .* exists and is not empty.*",
            ".*isinstance.treespec, LeafSpec.*",
            ".*could not find the monitored key.*",  # max_steps before the first validation: fit() validates then
            ".*your dataloader is not resumable.*",  # QuestionData's is
            ".*module.s. in eval mode at the start of training.*",  # Tuner.on_train_start changes it
            ".*It is recommended to use .*sync_dist=True.*",  # what is logged is the same in all processes
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def _put_together(config: TrainConfig, loaded: LoadedModel, tuner: Tuner) -> None:
    """Makes a sharded model whole again, in every process: the base loaded anew, and what was trained put into it."""
    values = trained_tensors(tuner.model)
    base = load_base(config.model, config.quant, loaded.device, trains_all_weights=config.method.lora is None)
    whole = prepare(base, config)
    loaded.model, loaded.causal, tuner.model = whole.model, whole.causal, whole.model
    whole.model.load_state_dict(values, strict=False)


def _restore(tuner: Tuner, file: Path) -> None:
    """Puts the trained weights of a checkpoint into the model."""
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    tuner.check_names(checkpoint)
    tuner.load_state_dict(checkpoint["state_dict"], strict=False)


def _resume_point(config: TrainConfig, folder: Path) -> Path | None:
    """The newest checkpoint of the run that is continued."""
    if config.trainer.resume is None:
        return None
    files = sorted((folder / CHECKPOINTS).glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    if not files:
        console.print("There is no checkpoint yet: the run starts again from its beginning.")
        return None
    console.print(f"Going on from {files[-1]}", highlight=False)
    return files[-1]
