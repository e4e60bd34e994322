"""Full fine-tuning (method=full, sft): every weight is trained, and a whole model is saved."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from cyberlm.config.schema import MethodConfig, ModelConfig, ModelSource, QuantConfig, QuantName
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import BaseModel, hash_weights, load_base
from cyberlm.models.model_files import check_saved
from cyberlm.models.sharding import save_sharded

UNQUANTISED = QuantConfig(name=QuantName.none)


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
        if loaded.sharded:
            save_sharded(loaded.causal, folder)
        else:
            loaded.causal.save_pretrained(str(folder))

    def load(self, base: BaseModel, folder: Path) -> LoadedModel:
        """Loads the tuned weights; the base's file is hashed, and not loaded."""
        return replace(base, model=self._tuned(base, folder), quant=UNQUANTISED, check=lambda _: None).loaded

    def merge(self, base: BaseModel, folder: Path) -> LoadedModel:
        """Loads the tuned weights in the type of training."""
        return load_base(self._tuned(base, folder), UNQUANTISED, base.device, trains_all_weights=True)

    def _tuned(self, base: BaseModel, folder: Path) -> ModelConfig:
        check_saved(folder, "*.safetensors", "config.json")
        base.check(hash_weights(base.model))
        return replace(base.model, source=ModelSource.local, path=str(folder))
