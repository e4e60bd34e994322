"""LoRA (arXiv 2106.09685) on a frozen base, plain or in 4 bits (method=lora, qlora), saved as a plain PEFT folder."""

from typing import Any

from peft import LoraConfig as PeftLoraConfig
from peft import TaskType

from cyberlm.config.schema import LoraInit, MethodConfig
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.methods.adapters import (
    attach_adapter,
    merge_adapter,
    open_adapter,
    save_adapter,
    without_adapter,
)


class Lora:
    trains_all_weights = False
    can_merge = True
    base_view = staticmethod(without_adapter)
    save = staticmethod(save_adapter)
    load = staticmethod(open_adapter)
    merge = staticmethod(merge_adapter)

    def __init__(self, config: MethodConfig) -> None:
        assert config.lora is not None  # `cyberlm.config.rules` has checked it
        self.config = config.lora
        # PiSSA and OLoRA take what A and B begin with out of the base's weights
        self.keeps_base = self.allows_4bit = self.config.init in (LoraInit.default, LoraInit.gaussian)

    def attach(self, loaded: LoadedModel) -> LoadedModel:
        """Freezes the base and injects y = W x + (alpha/rank) B A x, with B zero at first (see `LoraConfig.init`)."""
        targets = self.config.target_modules
        init: Any = self.config.init.value
        if init == "default" or loaded.device.type == "meta":  # weights without memory have no decomposition
            init = True
        config = PeftLoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.config.rank,
            lora_alpha=self.config.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
            lora_dropout=self.config.dropout,
            target_modules=[targets] if isinstance(targets, str) and targets != "all-linear" else targets,
            init_lora_weights=init,
            use_dora=self.config.use_dora,
            use_rslora=self.config.use_rslora,
        )
        return attach_adapter(loaded, config, "method.lora.target_modules")
