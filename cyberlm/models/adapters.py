"""Adapters: added, counted, saved as plain PEFT folders, and opened again."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from cyberlm.config.schema import LoraConfig, ModelConfig, ModelSource, QuantConfig, QuantName
from cyberlm.models.cpu_kernels import use_fast_products
from cyberlm.models.gguf_validation import check_fetched, pickled_weights
from cyberlm.models.loaded import UNREADABLE, LoadedModel, on_one_line, quiet
from cyberlm.models.loading import load_base
from cyberlm.runtime.errors import ModelError, Problem

ADAPTER_FOLDER = "adapter"
MODEL_FOLDER = "model"
EMBEDDINGS = ("lm_head", "embed_tokens")


def add_adapter(loaded: LoadedModel, lora: LoraConfig, *, gradient_checkpointing: bool) -> LoadedModel:
    """Freezes the base and injects LoRA (arXiv 2106.09685): y = W x + (alpha/rank) B A x, B starting at zero.

    Raises:
        ModelError: If a target module does not exist, or is an embedding that input and output share.
    """
    targets = lora.target_modules
    linear, others = _linear_layers(loaded.causal)
    if targets != "all-linear":
        names = [targets] if isinstance(targets, str) else list(targets)
        _check_targets(loaded, linear, names)
        targets = names
    config = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=others or None,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
    )
    if gradient_checkpointing:
        loaded.causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        with quiet():
            model = get_peft_model(loaded.causal, config)
    except ValueError as error:
        told = " ".join(str(error).split())
        raise ModelError(
            f"PEFT cannot put this adapter on {loaded.name}:",
            [Problem(f"method.lora.target_modules={lora.target_modules}: {told}", _listed(linear))],
            "Type those of them that suit the model: 'method.lora.target_modules=[...]'",
        ) from error
    model.peft_config["default"].base_model_name_or_path = loaded.name
    use_fast_products(model)
    return replace(loaded, model=model)


def keep_inputs_narrow(model: nn.Module) -> None:
    """Leaves out PEFT's conversion of each adapter's input to float32, which autocast would undo at once.

    Not for DoRA, which computes with the input itself. To be called only where every forward pass is under autocast.
    """
    for module in model.modules():
        if isinstance(module, LoraLinear) and not module.lora_variant:
            module.cast_input_dtype_enabled = False


def _linear_layers(causal: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the linear layers that an adapter can stand on, and of those that give something else than a product.

    A router of Llama 4's experts, for example, is a linear layer by its class, and gives which experts are chosen.
    """
    linear: list[str] = []
    others: list[str] = []
    for name, module in causal.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            own = type(module).__module__.startswith(("transformers.models.", "transformers_modules."))
            (others if own and not _gives_rows(module) else linear).append(name)
    return linear, others


@torch.no_grad()
def _gives_rows(module: Any) -> bool:
    """Whether a layer of a model's own class maps (1, I) to (1, O)."""
    weight = module.weight
    try:
        given = module(torch.zeros(1, module.in_features, device=weight.device, dtype=weight.dtype))
    except UNREADABLE:
        return False
    return isinstance(given, Tensor) and given.shape == (1, module.out_features)


def _listed(linear: list[str]) -> str:
    return ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))


def _check_targets(loaded: LoadedModel, linear: list[str], names: list[str]) -> None:
    known = {name.rsplit(".", 1)[-1] for name in linear}
    unknown = [name for name in names if name not in known and name not in EMBEDDINGS]
    if unknown:
        raise ModelError(
            "The adapter's target modules do not exist in this model:",
            [Problem(f"method.lora.target_modules: {', '.join(unknown)}", _listed(linear))],
        )
    tied = [name for name in names if name in EMBEDDINGS]
    if tied and loaded.causal.config.tie_word_embeddings:
        raise ModelError(
            "The adapter cannot stand on embeddings that input and output share: merging it would change both.",
            [Problem(f"method.lora.target_modules: {', '.join(tied)}", fix="method.lora.target_modules=all-linear")],
        )


def base_alone(loaded: LoadedModel) -> AbstractContextManager[None]:
    """The base model without its adapter, where it has one, for as long as the context lasts."""
    if not isinstance(loaded.model, PeftModel):
        return nullcontext()
    without: AbstractContextManager[None] = loaded.model.disable_adapter()
    return without


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that are trained."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and total parameters; a 4-bit parameter counts as one, though two share a byte."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if parameter.__class__.__name__ == "Params4bit":
            count *= 2 * parameter.element_size()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def save_tuned(
    loaded: LoadedModel, tokenizer: PreTrainedTokenizerBase, prompt: Mapping[str, str], run: Path, **options: Any
) -> Path:
    """Writes adapter/ (PEFT) or, after full fine-tuning, model/ (transformers), with tokenizer and prompt.json.

    The folder appears whole, or not at all.

    Args:
        options: Of transformers' `save_pretrained`.

    Returns:
        The folder.
    """
    adapted = isinstance(loaded.model, PeftModel)
    folder = run / (ADAPTER_FOLDER if adapted else MODEL_FOLDER)
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    with quiet():
        if isinstance(loaded.model, PeftModel):
            # "auto" would ask the hub for the base's vocabulary size
            loaded.model.save_pretrained(str(building), save_embedding_layers=False)
            (building / "README.md").unlink(missing_ok=True)  # the model card is written with the results
        else:
            loaded.causal.save_pretrained(str(building), **options)
        tokenizer.save_pretrained(str(building))
    write_prompt(building, prompt)
    shutil.rmtree(folder, ignore_errors=True)
    building.replace(folder)
    return folder


def write_prompt(folder: Path, prompt: Mapping[str, str]) -> None:
    """Writes prompt.json: which prompt a model was tuned with, as `Prompt.identity` gives it."""
    (folder / "prompt.json").write_text(json.dumps(dict(prompt)) + "\n")


def load_whole(model: ModelConfig, folder: Path, device: torch.device, *, trains_all_weights: bool) -> LoadedModel:
    """Loads fully tuned weights; those that they were tuned from are not needed.

    Args:
        model: Of the run.
        folder: The run's `MODEL_FOLDER`.
        trains_all_weights: Whether in the type of training (`cyberlm.models.loading.weights_dtype`).

    Raises:
        ModelError: If there are none, or they cannot be read.
    """
    _existing(folder, "*.safetensors", "config.json")
    tuned = replace(model, source=ModelSource.local, path=str(folder))
    return load_base(tuned, QuantConfig(name=QuantName.none), device, trains_all_weights=trains_all_weights)


def load_adapter(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """Puts a PEFT adapter on its base, which is changed in place.

    Raises:
        ModelError: If there is none, or it does not fit the base.
    """
    _existing(folder, "adapter_model.safetensors", "adapter_config.json")
    with quiet(), _fits(folder, loaded):
        model = PeftModel.from_pretrained(loaded.causal, str(folder), torch_device=str(loaded.device))
        _check_names(folder / "adapter_model.safetensors", model)
    use_fast_products(model)
    if loaded.device.type == "cuda":  # answers are computed under autocast there
        keep_inputs_narrow(model)
    return replace(loaded, model=model)


@contextlib.contextmanager
def _fits(folder: Path, loaded: LoadedModel) -> Iterator[None]:
    """Names the folder where its files are torn, foreign, or of another shape than the base."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, *UNREADABLE) as error:
        raise ModelError(
            f"What lies in {folder} does not fit {loaded.name}.",
            [Problem(on_one_line(error), "the folder as the run wrote it")],
            "Train again, or take the folder from where the run was made.",
        ) from error


def _check_names(file: Path, model: PeftModel) -> None:
    """peft sets aside what it does not know, and leaves at zero what is missing: the base would pass for tuned.

    The embeddings and the head may be saved with an adapter, and are then put in place of the base's.
    """
    with safe_open(file, framework="pt") as tensors:
        found = set(tensors.keys())
    needed = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    known = set(get_peft_model_state_dict(model, save_embedding_layers=True))
    for names, told in ((found - known, "belong to none of its layers"), (needed - found, "are missing")):
        if names:
            raise ValueError(f"{len(names)} tensors {told}, for example {min(names)}")


def _existing(folder: Path, *patterns: str) -> Path:
    missing = [pattern for pattern in patterns if not list(folder.glob(pattern))]
    pickled = pickled_weights(folder)
    if pickled and missing:
        raise ModelError(
            f"{folder} holds pickled weights, which are never opened: a pickle can run code.",
            [Problem(", ".join(pickled), ", ".join(patterns))],
            "Convert them where you trust them (safetensors.torch.save_file), or train again.",
        )
    if missing:
        raise ModelError(
            f"{folder.parent} holds no tuned model.",
            [Problem(f"{folder / missing[0]} is missing", "a run that has finished")],
            "Continue an unfinished run: python train.py trainer.resume=RUN",
        )
    check_fetched(folder)
    return folder


def read_prompt(folder: Path) -> dict[str, str]:
    """What prompt.json says of the prompt that a model was tuned with; nothing where it is absent or torn."""
    try:
        saved = json.loads((folder / "prompt.json").read_text())
    except (OSError, ValueError):
        return {}
    return saved if isinstance(saved, dict) else {}
