"""LoRA (arXiv 2106.09685) on a frozen base, plain or in 4 bits (method=lora, qlora), saved as a plain PEFT folder."""

from typing import Any

from peft import LoraConfig as PeftLoraConfig
from peft import TaskType

from cyberlm.config.schema import LoraInit, MethodConfig
from cyberlm.models.methods.adapters import ALL_LINEAR, Adapter


class Lora(Adapter):
    """y = W x + (alpha/rank) B A x, with B zero at first (see `LoraConfig.init`)."""

    key = "method.lora.target_modules"

    def __init__(self, config: MethodConfig) -> None:
        lora = config.lora
        assert lora is not None  # `cyberlm.config.rules` has checked it
        # PiSSA and OLoRA take what A and B begin with out of the base's weights
        self.keeps_base = self.allows_4bit = lora.init in (LoraInit.default, LoraInit.gaussian)
        targets = lora.target_modules
        init: Any = True if lora.init is LoraInit.default else lora.init.value
        self.config = PeftLoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
            lora_dropout=lora.dropout,
            target_modules=[targets] if isinstance(targets, str) and targets != ALL_LINEAR else targets,
            init_lora_weights=init,
            use_dora=lora.use_dora,
            use_rslora=lora.use_rslora,
        )
