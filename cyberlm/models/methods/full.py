"""Full fine-tuning (method=full, sft): every weight is trained, and a whole model is saved."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from cyberlm.config.schema import MethodConfig, ModelSource, QuantConfig, QuantName
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import BaseModel, hash_weights, load_base
from cyberlm.models.model_files import check_saved


class Full:
    trains_all_weights = True
    keeps_base = False
    allows_4bit = False
    can_merge = True

    def __init__(self, config: MethodConfig) -> None:
        """Takes no settings."""

    def attach(self, loaded: LoadedModel) -> LoadedModel:
        loaded.causal.requires_grad_(True)
        return loaded

    def base_view(self, loaded: LoadedModel) -> AbstractContextManager[None]:
        return nullcontext()  # called before training

    def save(self, loaded: LoadedModel, folder: Path) -> None:
        loaded.causal.save_pretrained(str(folder))

    def load(self, base: BaseModel, folder: Path) -> LoadedModel:
        """Loads the tuned weights; the base's file is hashed, and not loaded."""
        return self._load(base, folder, trains_all_weights=False)

    def merge(self, base: BaseModel, folder: Path) -> LoadedModel:
        """Loads the tuned weights in the type of training."""
        return self._load(base, folder, trains_all_weights=True)

    def _load(self, base: BaseModel, folder: Path, *, trains_all_weights: bool) -> LoadedModel:
        check_saved(folder, "*.safetensors", "config.json")
        base.check(hash_weights(base.model))
        tuned = replace(base.model, source=ModelSource.local, path=str(folder))
        return load_base(tuned, QuantConfig(name=QuantName.none), base.device, trains_all_weights=trains_all_weights)
