"""Fine-tuning methods: what is trained, how the base answers beside it, and how the result is saved, loaded and merged.

A method of your own is a class with the attributes and functions of `Method`, and a YAML file that names it:

    # my_conf/method/norms.yaml
    _target_: my_methods.Norms
    name: norms
    learning_rate: 1e-3
"""

from contextlib import AbstractContextManager
from pathlib import Path
from pkgutil import resolve_name
from typing import Protocol

import torch

from cyberlm.config.schema import MethodConfig, QuantName, Strategy, TrainConfig
from cyberlm.models.loaded import LoadedModel, one_line
from cyberlm.models.loading import BaseModel, load_base, load_sharded
from cyberlm.models.methods.adapters import skip_input_casts
from cyberlm.models.sharding import Sharding
from cyberlm.runtime.errors import ConfigError, Problem


class Method(Protocol):
    """A fine-tuning method, made from its `MethodConfig` (`settings` are free).

    Attributes:
        trains_all_weights: All base weights are trained: the base is loaded in the type of training, and `save` writes
            a whole model, into `model/` of a run. Other methods save what they add to a base, into `adapter/`.
        keeps_base: `base_view` gives the base's answers after training, too; else the base is scored before `attach`.
        allows_4bit: It trains on a 4-bit base, too.
        can_merge: `merge` gives a plain model, which `cyberlm export` needs for to=merged and to=gguf.
    """

    trains_all_weights: bool
    keeps_base: bool
    allows_4bit: bool
    can_merge: bool

    def __init__(self, config: MethodConfig) -> None: ...

    def attach(self, loaded: LoadedModel) -> LoadedModel:
        """Makes exactly what is trained require gradients; the base may be changed in place."""

    def base_view(self, loaded: LoadedModel) -> AbstractContextManager[None]:
        """Lets the base answer alone, exactly as it was loaded, for as long as the context lasts."""

    def save(self, loaded: LoadedModel, folder: Path) -> None:
        """Writes what was trained, as safetensors; tokenizer and prompt are written beside it.

        Called in rank 0, with whole tensors. Only a method that trains all weights is called in all ranks of a sharded
        model, whose tensors no process could hold together.
        """

    def load(self, base: BaseModel, folder: Path) -> LoadedModel:
        """Opens what `save` has written; `base.loaded`, or what `base.attached` gives, may be changed in place."""

    def merge(self, base: BaseModel, folder: Path) -> LoadedModel:
        """Opens what `save` has written as one plain transformers model, `LoadedModel.causal`."""


def method_of(config: MethodConfig) -> Method:
    """Makes the method that `_target_` names."""
    try:
        kind: type[Method] = resolve_name(config._target_)
    except (ImportError, ValueError, AttributeError) as error:
        what = f"method._target_={config._target_}: {one_line(error)}"
        allowed = "the dotted name of a class, its module on the PYTHONPATH"
        raise ConfigError(f"method={config.name} cannot be used:", [Problem(what, allowed)]) from error
    return kind(config)


def saved_folder(config: MethodConfig, run: Path) -> Path:
    """The folder of a run that `Method.save` writes."""
    return run / ("model" if method_of(config).trains_all_weights else "adapter")


def load_for_training(config: TrainConfig, device: torch.device) -> LoadedModel:
    """Loads a run's base model as its method trains it; with FSDP2 each process loads its share, made trainable.

    Raises:
        ConfigError: If the method does not train on a 4-bit base, or not on a sharded one.
        ModelError: If the base cannot be had.
    """
    method = method_of(config.method)
    if config.quant.name is QuantName.nf4 and not method.allows_4bit:
        what = f"method={config.method.name} quant={config.quant.name.name}: this method trains on whole weights"
        raise ConfigError("This cannot be trained:", [Problem(what, "quant=none, or method=qlora", "quant=none")])
    if config.trainer.strategy is not Strategy.fsdp2:
        return load_base(config.model, config.quant, device, trains_all_weights=method.trains_all_weights)
    if not (method.keeps_base or method.trains_all_weights):
        what = f"method={config.method.name} trainer.strategy=fsdp2: this method changes the base, which it needs whole"
        raise ConfigError("This cannot be trained:", [Problem(what, "trainer.strategy=ddp", "trainer.strategy=ddp")])
    compute_dtype = torch.bfloat16 if precision(config, device) == "bf16-mixed" else None
    sharding = Sharding(compute_dtype, config.trainer.replicas, config.trainer.cpu_offload)
    return load_sharded(
        *(config.model, config.quant, device, lambda bare: attach(bare, config), sharding),
        trains_all_weights=method.trains_all_weights,
    )


def attach(loaded: LoadedModel, config: TrainConfig) -> LoadedModel:
    """`Method.attach`, with gradient checkpointing where it is asked for; a sharded model is loaded attached."""
    if loaded.sharded:
        return loaded
    if config.trainer.gradient_checkpointing:
        loaded.causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    attached = method_of(config.method).attach(loaded)
    if loaded.device.type == "cuda" and precision(config, loaded.device).endswith("-mixed"):
        skip_input_casts(attached.model)
    return attached


def precision(config: TrainConfig, device: torch.device) -> str:
    """`trainer.precision`, with `auto` settled."""
    if config.trainer.precision != "auto":
        return config.trainer.precision
    return "bf16-mixed" if device.type == "cuda" else "32-true"
