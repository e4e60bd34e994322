"""Training itself: the model made trainable, Lightning's trainer, and the weights that did best put back."""

import contextlib
import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from transformers import PretrainedConfig

from cyberlm.config.saved import settings_of
from cyberlm.config.schema import MethodConfig, Strategy, TrainConfig, TrainerConfig
from cyberlm.data.datamodule import QuestionData
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.memory import release_freed_memory
from cyberlm.models.methods.lora import keep_inputs_narrow
from cyberlm.models.methods.method import load_for_training, method_of
from cyberlm.models.sharding import trained_tensors
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import ConfigError, Problem, RunError
from cyberlm.runtime.progress import say
from cyberlm.runtime.signals import resume_command
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.training.callbacks.meters import CostMeter, RandomState, TrainingProgress
from cyberlm.training.callbacks.numbers import FiniteNumbers, LearningWatch
from cyberlm.training.callbacks.resuming import BestWeights, ResumePoints, validation_figures
from cyberlm.training.callbacks.rows import MetricRows
from cyberlm.training.callbacks.steps import StepNumbers
from cyberlm.training.checkpointing import CHECKPOINTS, SealedCheckpoints, damage, read_checkpoint, resume_point
from cyberlm.training.lightning_module import FineTuningModule
from cyberlm.training.loggers import MetricsFile

log = logging.getLogger(__name__)


def lightning_arguments(trainer: TrainerConfig) -> dict[str, Any]:
    """What Lightning's trainer is told about processes, and about checkpoint files, which one of them writes."""
    if trainer.devices == 1:
        return {"devices": 1, "plugins": [SealedCheckpoints()]}
    shared: dict[str, Any] = {"devices": trainer.devices, "plugins": [SealedCheckpoints(), LightningEnvironment()]}
    if trainer.strategy is Strategy.fsdp2:
        strategy = ModelParallelStrategy(trainer.devices, 1, save_distributed_checkpoint=False)
        return {**shared, "strategy": strategy}
    return {**shared, "strategy": DDPStrategy(broadcast_buffers=False)}


def prepare(loaded: LoadedModel, config: TrainConfig) -> LoadedModel:
    """Makes what the method trains trainable, with gradient checkpointing where it is asked for."""
    if config.trainer.gradient_checkpointing:
        loaded.causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    attached = method_of(config.method).attach(loaded)
    if loaded.device.type == "cuda" and _precision(config, loaded.device).endswith("-mixed"):
        keep_inputs_narrow(attached.model)
    return attached


def fit(
    config: TrainConfig,
    folder: Path,
    loaded: LoadedModel,
    prompt: Prompt,
    encoded: Mapping[str, Sequence[EncodedQuestion]],
    loggers: Sequence[Logger],
    meter: CostMeter,
) -> tuple[dict[str, float], int]:
    """Trains, and leaves the model with the weights that did best in validation (`trainer.monitor`).

    Returns:
        The validation figures of these weights by name, and the optimizer steps taken.
    """
    trainer_config = config.trainer
    sharded = trainer_config.strategy is Strategy.fsdp2
    share_validation = not sharded and len(encoded["validation"]) >= distributed.world_size()
    data = _data_of(config, loaded, prompt, encoded, share_validation)
    _check_interval(config, len(encoded["train"]))
    tuner = FineTuningModule(
        *(loaded, config.optim, config.evaluation.option_score), share_validation=share_validation, sharded=sharded
    )
    best = BestWeights(folder / CHECKPOINTS, trainer_config.monitor)
    numbers = StepNumbers()
    watch = LearningWatch(numbers, config.optim.warmup_fraction, share_validation=share_validation)
    metrics = MetricsFile(folder)
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
            logger=[metrics, *loggers],
            callbacks=[
                TrainingProgress(len(encoded["train"]), numbers),
                meter,
                RandomState(config.seed),
                MetricRows(metrics, loggers, trainer_config.log_every_n_steps, numbers),
                FiniteNumbers(folder, config.seed, numbers),
                watch,
                LambdaCallback(on_validation_start=_release_freed_memory, on_validation_end=_release_freed_memory),
                *(hydra.utils.instantiate(entry, _convert_="all") for entry in config.callbacks.values()),
                best,
                _points_of(config, folder),  # after best, so that it knows of weights that have just been chosen
            ],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        point = distributed.broadcast(_resume_point(config, folder, tuner) if distributed.rank() == 0 else None)
        if point is None:
            metrics.keep(0)  # else MetricRows keeps what the checkpoint counts on
        trainer.fit(tuner, data, ckpt_path=point, weights_only=True)
        release_freed_memory()  # the optimizer and its states refer to each other
        if best.best_model_score is None:  # max_steps came before the first validation
            trainer.validate(tuner, data, verbose=False)
        figures = best.figures or validation_figures(trainer)
        if sharded:
            _put_together(config, loaded, tuner)
        if best.best_model_score is not None:
            restore(tuner, Path(best.best_model_path))
    if distributed.rank() == 0:
        watch.conclude(figures)
    return figures, trainer.global_step


def _release_freed_memory(*unused: Any) -> None:
    """Training's tensors and validation's seldom fit in each other's gaps."""
    release_freed_memory()


def _points_of(config: TrainConfig, folder: Path) -> ResumePoints:
    every = config.trainer
    return ResumePoints(
        folder / CHECKPOINTS,
        every.checkpoint_every_n_steps,
        every.checkpoint_every_minutes,
        every.keep_checkpoints,
        settings_of(config),
    )


def _data_of(
    config: TrainConfig,
    loaded: LoadedModel,
    prompt: Prompt,
    encoded: Mapping[str, Sequence[EncodedQuestion]],
    share_validation: bool,
) -> QuestionData:
    return QuestionData(
        config.data,
        encoded["train"],
        encoded["validation"],
        prompt.end_ids,
        config.trainer.accumulate_grad_batches,
        config.seed,
        share_prefix=shares_prefix(config, loaded.causal.config, encoded["train"], len(prompt.end_ids), loaded.reach),
        share_validation=share_validation,
    )


def shares_prefix(
    config: TrainConfig, shape: PretrainedConfig, questions: Sequence[EncodedQuestion], end: int, reach: int
) -> bool:
    """Whether what a micro-batch's prompts begin with is encoded once.

    Not with dropout, which each example draws for itself, nor with checkpointing, which allows no cache. Nor with
    FSDP2, whose processes must call the same layers equally often: batches need not share a beginning. Nor where the
    longest example passes what the model's cache keeps whole.

    Args:
        shape: The model's own configuration.
        questions: That are trained on.
        end: Tokens that close an answer.
        reach: Of the model's cache (`cyberlm.models.prefix_cache.cache_reach`).
    """
    trainer = config.trainer
    if _drops(config.method, shape) or trainer.gradient_checkpointing or trainer.strategy is Strategy.fsdp2:
        return False
    return max(len(item.prompt_ids) + len(item.option_ids[item.gold]) for item in questions) + end <= reach


def _drops(method: MethodConfig, shape: PretrainedConfig) -> bool:
    """Whether a method or a model (GPT-2: attn_pdrop, embd_pdrop, resid_pdrop) is set to drop anything at random."""
    settings = {**shape.get_text_config(decoder=True).to_dict(), **method.settings}
    settings["lora_dropout"] = getattr(method.lora, "dropout", 0.0)
    return any(isinstance(value, float) and value > 0 for name, value in settings.items() if "drop" in name)


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
            ".*isinstance.treespec, LeafSpec.*",
            ".*could not find the monitored key.*",  # max_steps before the first validation: fit() validates then
            ".*your dataloader is not resumable.*",  # QuestionData's is
            ".*module.s. in eval mode at the start of training.*",  # FineTuningModule.on_train_start changes it
            ".*It is recommended to use .*sync_dist=True.*",  # what is logged is the same in all processes
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def _put_together(config: TrainConfig, loaded: LoadedModel, tuner: FineTuningModule) -> None:
    """Makes a sharded model whole again, in every process: the base loaded anew, and what was trained put into it."""
    values = trained_tensors(tuner.model)
    whole = prepare(load_for_training(config, loaded.device), config)
    loaded.model, loaded.causal, tuner.model = whole.model, whole.causal, whole.model
    whole.model.load_state_dict(values, strict=False)


def restore(tuner: FineTuningModule, file: Path) -> None:
    """Puts the trained weights of a checkpoint into the model.

    Raises:
        RunError: If the file is damaged or missing.
    """
    wrong = damage(file)
    if wrong:
        raise RunError(
            f"The best weights are lost: {file} is damaged.", [Problem(wrong)], resume_command(file.parents[1])
        )
    checkpoint = _opened(file)
    tuner.check_names(checkpoint)
    tuner.load_state_dict(checkpoint["state_dict"], strict=False)


def _opened(file: Path) -> dict[str, Any]:
    """A checkpoint's content; nothing but tensors and plain values is ever unpickled.

    Raises:
        RunError: If it is torn, or is something else.
    """
    try:
        checkpoint = read_checkpoint(file)
        if not isinstance(checkpoint["state_dict"], dict):
            raise KeyError("state_dict")
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        told = (str(error).splitlines() or [""])[0].split(". ")[0]
        raise RunError(
            f"{file} is not a checkpoint that can be read.",
            [Problem(f"{type(error).__name__}: {told}", "a whole checkpoint of this run, of tensors and plain values")],
            f"Delete it to go on from another: rm '{file}'",
        ) from error
    return checkpoint


def _resume_point(config: TrainConfig, folder: Path, tuner: FineTuningModule) -> Path | None:
    """The newest whole checkpoint of the run that is continued, after a look at whether it fits."""
    if config.trainer.resume is None:
        return None
    file = resume_point(folder, log.warning)
    if file is None:
        say("There is no checkpoint to go on from: training starts from its beginning.")
        return None
    tuner.check_names(_opened(file))
    say(f"Going on from {file}")
    return file
