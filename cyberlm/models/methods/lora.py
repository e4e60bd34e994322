"""LoRA (arXiv 2106.09685) on a frozen base, plain or in 4 bits (method=lora, qlora), saved as a plain PEFT folder."""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cyberlm.config.rules import EMBEDDING_MODULES
from cyberlm.config.schema import MethodConfig
from cyberlm.models.cpu_kernels import use_fast_products
from cyberlm.models.fused_lora import fuse_lora
from cyberlm.models.loaded import UNREADABLE, LoadedModel, on_one_line, quiet
from cyberlm.models.loading import BaseModel
from cyberlm.models.model_files import check_saved
from cyberlm.runtime.errors import ModelError, Problem


class Lora:
    trains_all_weights = False
    keeps_base = True
    allows_4bit = True
    can_merge = True

    def __init__(self, config: MethodConfig) -> None:
        assert config.lora is not None  # `cyberlm.config.rules` has checked it
        self.config = config.lora

    def attach(self, loaded: LoadedModel) -> LoadedModel:
        """Freezes the base and injects y = W x + (alpha/rank) B A x, with B zero at first.

        Raises:
            ModelError: If a target module does not exist, or is an embedding that input and output share.
        """
        linear, others = _linear_layers(loaded.causal)
        known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
        targets = self.config.target_modules
        if targets != "all-linear":
            targets = [targets] if isinstance(targets, str) else list(targets)
            _check_targets(loaded, known.split(", "), targets)
        config = PeftLoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.config.rank,
            lora_alpha=self.config.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
            lora_dropout=self.config.dropout,
            target_modules=targets,
            exclude_modules=others or None,
            use_dora=self.config.use_dora,
            use_rslora=self.config.use_rslora,
        )
        try:
            with quiet():
                model = get_peft_model(loaded.causal, config)
        except ValueError as error:
            what = f"method.lora.target_modules={self.config.target_modules}: {on_one_line(error)}"
            raise ModelError(
                f"PEFT cannot put this adapter on {loaded.name}:",
                [Problem(what, known)],
                "Type those of them that suit the model: 'method.lora.target_modules=[...]'",
            ) from error
        model.peft_config["default"].base_model_name_or_path = loaded.name
        use_fast_products(model)
        fuse_lora(model)
        return replace(loaded, model=model)

    def base_view(self, loaded: LoadedModel) -> AbstractContextManager[None]:
        assert isinstance(loaded.model, PeftModel)
        without: AbstractContextManager[None] = loaded.model.disable_adapter()
        return without

    def save(self, loaded: LoadedModel, folder: Path) -> None:
        assert isinstance(loaded.model, PeftModel)
        # "auto" would ask the hub for the base's vocabulary size
        loaded.model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # the model card is written with the results

    def load(self, base: BaseModel, folder: Path) -> LoadedModel:
        return base.attached(lambda loaded: load_adapter(loaded, folder))

    def merge(self, base: BaseModel, folder: Path) -> LoadedModel:
        """Adds the adapter into the weights of its base.

        A 4-bit base is first expanded to the numbers that its 4 bits stand for, in the type of its other weights: the
        adapter was trained on those. Rounding the sum back to 4 bits, or adding the adapter to the original weights,
        would lose part of what was learned.

        Raises:
            ModelError: If the adapter does not fit, or holds numbers that are not finite.
        """
        loaded = base.loaded
        if getattr(loaded.causal, "hf_quantizer", None) is not None:
            with quiet():
                loaded.causal.dequantize(dtype=loaded.causal.dtype)
                # what was read in 4 bits is written whole: nothing of the reading is to be reversed
                loaded.causal._weight_conversions = None  # type: ignore[assignment]
        tuned = load_adapter(loaded, folder)
        assert isinstance(tuned.model, PeftModel)
        try:
            with quiet():
                merged = tuned.model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise ModelError(f"The adapter {folder} cannot be merged.", [Problem(on_one_line(error))]) from error
        return replace(tuned, model=merged, causal=merged)


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
    """Tries a layer of a model's own class: it maps (1, I) to (1, O)."""
    weight = module.weight
    try:
        given = module(torch.zeros(1, module.in_features, device=weight.device, dtype=weight.dtype))
    except UNREADABLE:
        return False
    return isinstance(given, Tensor) and given.shape == (1, module.out_features)


def _check_targets(loaded: LoadedModel, known: list[str], names: list[str]) -> None:
    unknown = [name for name in names if name not in (*known, *EMBEDDING_MODULES)]
    if unknown:
        raise ModelError(
            "The adapter's target modules do not exist in this model:",
            [Problem(f"method.lora.target_modules: {', '.join(unknown)}", ", ".join(known))],
        )
    tied = [name for name in names if name in EMBEDDING_MODULES]
    if tied and loaded.causal.config.tie_word_embeddings:
        raise ModelError(
            "The adapter cannot stand on embeddings that input and output share: merging it would change both.",
            [Problem(f"method.lora.target_modules: {', '.join(tied)}", fix="method.lora.target_modules=all-linear")],
        )


def load_adapter(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """Puts a PEFT adapter on its base, which is changed in place.

    Raises:
        ModelError: If there is none, or it does not fit the base.
    """
    check_saved(folder, "adapter_model.safetensors", "adapter_config.json")
    try:
        with quiet():
            model = PeftModel.from_pretrained(loaded.causal, str(folder), torch_device=str(loaded.device))
        _check_names(folder / "adapter_model.safetensors", model)
    except torch.OutOfMemoryError:
        raise
    except (OSError, *UNREADABLE) as error:
        raise ModelError(
            f"What lies in {folder} does not fit {loaded.name}.",
            [Problem(on_one_line(error), "the folder as the run wrote it")],
            "Train again, or take the folder from where the run was made.",
        ) from error
    use_fast_products(model)
    fuse_lora(model)
    if loaded.device.type == "cuda":  # answers are computed under autocast there
        keep_inputs_narrow(model)
    return replace(loaded, model=model)


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
