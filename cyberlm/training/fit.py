"""Fine-tuning: makes the model trainable, runs Lightning's trainer, and restores the weights that did best."""

import contextlib
import logging
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
from lightning.pytorch.strategies import DDPStrategy
from transformers import PretrainedConfig

from cyberlm.config.saved import flat_config
from cyberlm.config.schema import Monitor, Strategy, TrainConfig
from cyberlm.data.batches import count_batches
from cyberlm.data.datamodule import QuestionData
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.memory import release_freed_memory
from cyberlm.models.methods.method import precision
from cyberlm.models.prefix_cache import saves_enough, shared_length
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import ConfigError, Problem, RunError
from cyberlm.runtime.progress import say
from cyberlm.runtime.signals import resume_command
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.training.callbacks.meters import CostMeter, MetricRows, validation_figures
from cyberlm.training.callbacks.numbers import FiniteNumbers, LearningWatch
from cyberlm.training.callbacks.resuming import BestWeights, RandomState, ResumePoints
from cyberlm.training.checkpointing import CHECKPOINTS, AtomicCheckpointIO, damage, read_checkpoint, resume_point
from cyberlm.training.lightning_module import FineTuningModule
from cyberlm.training.loggers import MetricsFile
from cyberlm.training.sharded_checkpoints import ShardedStrategy, load_shards, trained_shards

log = logging.getLogger(__name__)


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
    share_validation = len(encoded["validation"]) >= distributed.world_size()
    _check_interval(config, len(encoded["train"]))
    data = question_data(config, loaded, prompt, encoded, share_validation=share_validation)
    free = all(len(question.option_ids) == 1 for question in encoded["validation"])
    if free and config.trainer.monitor is Monitor.accuracy:
        what, fix = "answers without options have no accuracy by likelihood", "trainer.monitor=option_nll"
        raise ConfigError("The figure that chooses the weights is not measured:", [Problem(what, fix=fix)])
    module = FineTuningModule(
        loaded, config.optim, config.evaluation.option_score, share_validation=share_validation, free=free
    )
    best = BestWeights(folder / CHECKPOINTS, config.trainer.monitor)
    watch, metrics = LearningWatch(), MetricsFile(folder)
    # tensors of training and of validation seldom fit in each other's gaps
    tidy = LambdaCallback(
        **dict.fromkeys(("on_validation_start", "on_validation_end"), lambda *_: release_freed_memory())
    )
    with _filter_warnings():
        trainer = L.Trainer(
            **_trainer_settings(config, loaded.device),
            logger=[metrics, *loggers],
            callbacks=[
                FiniteNumbers(config.seed),
                meter,
                RandomState(config.seed),
                MetricRows(metrics, loggers, meter),
                watch,
                tidy,
                *(hydra.utils.instantiate(entry, _convert_="all") for entry in config.callbacks.values()),
                best,
                # after best, so that it knows of weights that have just been chosen
                ResumePoints(folder / CHECKPOINTS, config.trainer, flat_config(config)),
            ],
            default_root_dir=folder,
        )
        # rank 0's broadcast of SIGTERM before each micro-batch; here ResumePoints handles signals
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        point = distributed.broadcast(_resume_point(config, folder, module) if distributed.rank() == 0 else None)
        if point is None:
            metrics.keep(0)  # else MetricRows keeps what the checkpoint counts on
        trainer.fit(module, data, ckpt_path=point, weights_only=True)
        release_freed_memory()  # the optimizer and its states refer to each other
        if not best.figures:  # max_steps came before the first validation
            trainer.validate(module, data, verbose=False)
        figures = best.figures or validation_figures(trainer)
        if best.figures:
            restore(module, best.file)
    if distributed.rank() == 0:
        for finding in watch.findings(figures):
            log.warning("%s", finding)
    return figures, trainer.global_step


def _trainer_settings(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """Arguments of Lightning's trainer that follow from the configuration, and those that are always the same."""
    trainer = config.trainer
    processes = distributed.world_size()
    settings: dict[str, Any] = {"plugins": [AtomicCheckpointIO(), OneDeviceNode()], "num_nodes": processes}
    settings["devices"] = [distributed.local_rank() % torch.cuda.device_count()] if device.type == "cuda" else 1
    if processes > 1:
        settings["strategy"] = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    if trainer.strategy is Strategy.fsdp2:
        settings["strategy"] = ShardedStrategy(processes, 1)
    return {
        **settings,
        "accelerator": "gpu" if device.type == "cuda" else "cpu",
        # a sharded model computes in the type that its weights are gathered in
        "precision": "32-true" if trainer.strategy is Strategy.fsdp2 else precision(config, device),
        "deterministic": trainer.deterministic,
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps or -1,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "val_check_interval": trainer.val_check_interval,
        "gradient_clip_val": config.optim.max_grad_norm or None,
        "log_every_n_steps": trainer.log_every_n_steps,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }


class OneDeviceNode(LightningEnvironment):
    """Lightning's view of the processes that a launcher has started: each is a node of its own, with one device."""

    creates_processes_externally = True

    def world_size(self) -> int:
        return distributed.world_size()

    def global_rank(self) -> int:
        return distributed.rank()

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return distributed.rank()

    def teardown(self) -> None:
        """The group stays: scoring follows."""


def question_data(
    config: TrainConfig,
    loaded: LoadedModel,
    prompt: Prompt,
    encoded: Mapping[str, Sequence[EncodedQuestion]],
    *,
    share_validation: bool = False,
) -> QuestionData:
    """Batches of training and of validation, by the configuration and the model."""
    return QuestionData(
        config.data,
        encoded["train"],
        encoded["validation"],
        prompt.end_ids,
        _accumulate(config),
        config.seed,
        share_prefix=shares_prefix(
            *(config, loaded.causal.config, encoded["train"], len(prompt.end_ids)),
            *(loaded.cacheable_tokens, loaded.device),
        ),
        share_validation=share_validation,
    )


def shares_prefix(
    config: TrainConfig,
    shape: PretrainedConfig,
    questions: Sequence[EncodedQuestion],
    end: int,
    cacheable_tokens: int,
    device: torch.device,
) -> bool:
    """True where the beginning that a micro-batch's prompts share is encoded once.

    Not with dropout, which each example draws for itself, nor with checkpointing, which allows no cache. Nor with
    FSDP2, whose processes must call the same layers equally often: batches need not share a beginning. Nor where the
    longest example is longer than the model's cache keeps, or where a GPU would save too little.

    Args:
        end: Tokens that close an answer.
        cacheable_tokens: Of the model (`cyberlm.models.prefix_cache.cacheable_tokens_of`).
    """
    trainer = config.trainer
    # of a method, or of a model (GPT-2: attn_pdrop, embd_pdrop, resid_pdrop)
    settings = {**shape.get_text_config(decoder=True).to_dict(), **config.method.settings}
    settings["lora_dropout"] = getattr(config.method.lora, "dropout", 0.0)
    drops = any(isinstance(value, float) and value > 0 for name, value in settings.items() if "drop" in name)
    if drops or trainer.gradient_checkpointing or trainer.strategy is Strategy.fsdp2:
        return False
    shared = shared_length([item.prompt_ids for item in questions])
    if not saves_enough(shared, config.data.micro_batch_size, device):
        return False
    return max(len(item.prompt_ids) + len(item.option_ids[item.gold]) for item in questions) + end <= cacheable_tokens


def _accumulate(config: TrainConfig) -> int:
    """Micro-batches in an optimizer step, those of all processes."""
    if config.data.batch_size is not None:
        return config.data.batch_size // config.data.micro_batch_size
    return config.trainer.accumulate_grad_batches * distributed.world_size()


def _check_interval(config: TrainConfig, questions: int) -> None:
    every, size = config.trainer.val_check_interval, config.data.micro_batch_size
    batches = count_batches(questions, size, _accumulate(config), distributed.world_size())
    if every is not None and every > batches:
        what = f"trainer.val_check_interval={every}, but an epoch has {batches} micro-batches a process"
        problem = Problem(what, f"at most {batches}, or null for once an epoch", "trainer.val_check_interval=null")
        raise ConfigError("Validation would never come:", [problem])


@contextlib.contextmanager
def _filter_warnings() -> Iterator[None]:
    """Silences advice that does not apply here, and deprecations between libraries."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*smaller than the logging interval.*",  # each validation writes a row, however few the steps
            ".*isinstance.treespec, LeafSpec.*",
            ".*callbacks used to create the checkpoint.*",  # of an older version: some had other names
            ".*your dataloader is not resumable.*",  # QuestionData's is
            ".*module.s. in eval mode at the start of training.*",  # FineTuningModule.on_train_start changes it
            ".*`broadcast_buffers` is deprecated.*",  # its successor is younger than the oldest torch that is supported
            ".*The `srun` command is available.*",  # on a machine of a cluster; a run there need not use it
            ".*It is recommended to use .*sync_dist=True.*",  # what is logged is the same in all processes
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def restore(module: FineTuningModule, file: Path) -> None:
    """Puts the trained weights of a checkpoint into the model.

    Raises:
        RunError: If the file is damaged or missing, or of another model.
    """
    if wrong := distributed.broadcast(damage(file) if distributed.rank() == 0 else ""):
        resume = resume_command(file.parents[1])
        raise RunError(f"The best weights are lost: {file} is damaged.", [Problem(wrong)], resume)
    checkpoint = read_checkpoint(file)
    module.check_names(checkpoint)
    if file.is_dir():
        load_shards(file, trained_shards(module))
    else:
        module.load_state_dict(checkpoint["state_dict"], strict=False)


def _resume_point(config: TrainConfig, folder: Path, module: FineTuningModule) -> Path | None:
    """The newest intact checkpoint of the run that is continued, checked against the model."""
    if config.trainer.resume is None:
        return None
    file = resume_point(folder)
    if file is None:
        say("There is no checkpoint to resume from: training starts from its beginning.")
        return None
    module.check_names(read_checkpoint(file))
    say(f"Resuming from {file}")
    return file
