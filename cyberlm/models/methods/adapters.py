"""Adapters of PEFT, whatever their kind: attached, switched off, saved as a plain PEFT folder, opened and merged."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cyberlm.config.method_rules import EMBEDDING_MODULES
from cyberlm.models.fast_layers import use_fast_layers
from cyberlm.models.loaded import LOADING_ERRORS, LoadedModel, one_line, quiet
from cyberlm.models.loading import BaseModel
from cyberlm.models.model_files import check_saved
from cyberlm.models.prefix_cache import PROBE_TOKENS, nearly_equal
from cyberlm.models.virtual_tokens import VirtualTokens, put_virtual_tokens
from cyberlm.runtime.errors import ModelError, Problem

ALL_LINEAR = "all-linear"


class Adapter:
    """Methods of PEFT: a subclass makes `config` from its settings.

    Attributes:
        config: PEFT's configuration of one of its kinds.
        key: Setting that names the target modules, for messages.
    """

    trains_all_weights = False
    keeps_base = True
    allows_4bit = True
    can_merge = True
    config: Any
    key = "method.settings.target_modules"

    def attach(self, loaded: LoadedModel) -> LoadedModel:
        """Freezes the base and puts an adapter on it, in place.

        Raises:
            ModelError: If a target module does not exist, is an embedding that input and output share, or PEFT refuses.
        """
        linear, others = _linear_layers(loaded.causal)
        known = sorted({name.rsplit(".", 1)[-1] for name in linear})
        targets = getattr(self.config, "target_modules", "none")  # of virtual tokens there are none
        if loaded.device.type == "meta":  # weights without memory can neither be decomposed nor chosen from (SHiRA)
            vars(self.config).update(init_lora_weights=True, mask_fn=None)
        if targets == ALL_LINEAR and others:
            self.config.exclude_modules = others
        elif not isinstance(targets, str):
            _check_targets(loaded, known, sorted(targets), self.key)
        try:
            with quiet():
                model = get_peft_model(loaded.causal, self.config)
        except (ValueError, TypeError, NotImplementedError) as error:
            shown = targets if isinstance(targets, str) else f"[{','.join(sorted(targets))}]"
            raise ModelError(
                f"PEFT cannot put this adapter on {loaded.name}:",
                [Problem(f"{self.key}={shown}: {one_line(error)}", ", ".join(known))],
                f"Type those of them that suit the model: '{self.key}=[...]'",
            ) from error
        model.peft_config["default"].base_model_name_or_path = loaded.name
        return _finish(replace(loaded, model=model))

    def base_view(self, loaded: LoadedModel) -> AbstractContextManager[None]:
        if not isinstance(loaded.model, PeftModel):  # not attached yet
            return nullcontext()
        virtual = getattr(loaded.model, "virtual_tokens", None)
        if isinstance(virtual, VirtualTokens):
            return virtual.left_out()
        without: AbstractContextManager[None] = loaded.model.disable_adapter()
        return without

    def save(self, loaded: LoadedModel, folder: Path) -> None:
        assert isinstance(loaded.model, PeftModel)
        # "auto" would ask the hub for the base's vocabulary size
        loaded.model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # the model card is written with the results

    def load(self, base: BaseModel, folder: Path) -> LoadedModel:
        return open_adapter(base, folder)

    def merge(self, base: BaseModel, folder: Path) -> LoadedModel:
        """Adds an adapter into the weights of its base.

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
                loaded.causal.is_loaded_in_4bit = False  # type: ignore[assignment]  # dequantize leaves it, peft refuses
        tuned = load_adapter(loaded, folder)
        assert isinstance(tuned.model, PeftModel)
        try:
            with quiet():
                merged = tuned.model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise ModelError(f"The adapter {folder} cannot be merged.", [Problem(one_line(error))]) from error
        return replace(tuned, model=merged, causal=merged)


def open_adapter(base: BaseModel, folder: Path) -> LoadedModel:
    """Opens any adapter that PEFT can open and that computes within the layers of its base.

    Raises:
        ModelError: If there is none, it does not fit the base, or it computes elsewhere.
    """
    loaded = base.attached(lambda bare: load_adapter(bare, folder))
    if base.sharding is None:
        _check_computes_in_layers(loaded, folder)
    return loaded


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
    except (OSError, *LOADING_ERRORS) as error:
        raise ModelError(
            f"What lies in {folder} does not fit {loaded.name}.",
            [Problem(one_line(error), "the folder as the run wrote it")],
            "Train again, or take the folder from where the run was made.",
        ) from error
    if loaded.device.type == "cuda":  # answers are computed under autocast there
        skip_input_casts(model)
    return _finish(replace(loaded, model=model))


def _finish(loaded: LoadedModel) -> LoadedModel:
    """Lets layers that were added compute as fast as those of the base, and puts virtual tokens before texts."""
    use_fast_layers(loaded.model)
    torch.sparse.check_sparse_tensor_invariants.disable()  # or SHiRA's would warn
    put_virtual_tokens(loaded)
    return loaded


def skip_input_casts(model: nn.Module) -> None:
    """Leaves out PEFT's conversion of each adapter's input to float32, which autocast would undo at once.

    Not for DoRA, which computes with the input itself. To be called only where every forward pass is under autocast.
    """
    for module in model.modules():
        if isinstance(module, LoraLinear) and not module.lora_variant:
            module.cast_input_dtype_enabled = False


# ------------------------------------------------------------------------------------------------ what is refused


def _linear_layers(causal: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the linear layers that an adapter can be put on, and of those that give something else than a product.

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
    except LOADING_ERRORS:
        return False
    return isinstance(given, Tensor) and given.shape == (1, module.out_features)


def _check_targets(loaded: LoadedModel, known: list[str], names: list[str], key: str) -> None:
    unknown = [name for name in names if name not in (*known, *EMBEDDING_MODULES)]
    if unknown:
        raise ModelError(
            "The adapter's target modules do not exist in this model:",
            [Problem(f"{key}: {', '.join(unknown)}", ", ".join(known))],
        )
    tied = [name for name in names if name in EMBEDDING_MODULES]
    if tied and loaded.causal.config.tie_word_embeddings:
        raise ModelError(
            "The adapter cannot be put on embeddings that input and output share: merging it would change both.",
            [Problem(f"{key}: {', '.join(tied)}", fix=f"{key}={ALL_LINEAR}")],
        )


def _check_names(file: Path, model: PeftModel) -> None:
    """peft sets aside what it does not know, and leaves at zero what is missing: the base would pass for tuned.

    The embeddings and the head may be saved with an adapter, and are then put in place of the base's.
    """
    with safe_open(file, framework="pt") as tensors:
        found = set(tensors.keys())
    needed = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    known = set(get_peft_model_state_dict(model, save_embedding_layers=True))
    for names, what in ((found - known, "belong to none of its layers"), (needed - found, "are missing")):
        if names:
            raise ValueError(f"{len(names)} tensors {what}, for example {min(names)}")


@torch.inference_mode()
def _check_computes_in_layers(loaded: LoadedModel, folder: Path) -> None:
    """Refuses an adapter with which PEFT's own forward pass differs from the model's halves, which scoring calls.

    Virtual tokens, routers and activation by a token are outside the layers.
    """
    ids = torch.arange(PROBE_TOKENS, device=loaded.device)[None]  # (1, 12)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}  # alike: the same kernels
    loaded.model.eval()
    try:
        with torch.autocast(loaded.device.type, torch.bfloat16, enabled=loaded.device.type == "cuda"):
            whole = loaded.model(**given).logits
            halves = loaded.head(loaded.backbone(**given).last_hidden_state)
        same = nearly_equal(halves, whole[:, -PROBE_TOKENS:])
    except torch.OutOfMemoryError:
        raise
    except LOADING_ERRORS:
        same = False
    if not same:
        assert isinstance(loaded.model, PeftModel)
        kind: PeftConfig = loaded.model.active_peft_config
        what = f"{folder}: its method ({kind.peft_type}) computes outside the layers of the model"
        raise ModelError("This adapter cannot be scored here.", [Problem(what, "an adapter on layers, as LoRA is")])
