"""Rules across the settings of a fine-tuning method."""

from collections.abc import Iterator

from cyberlm.config.schema import LoraConfig, LoraInit, ModelConfig, QuantName, TrainConfig
from cyberlm.runtime.errors import Problem

EMBEDDING_MODULES = ("lm_head", "embed_tokens")
FULL, LORA = "cyberlm.models.methods.full.Full", "cyberlm.models.methods.lora.Lora"
PEFT_ADAPTER = "cyberlm.models.methods.peft_adapter.PeftAdapter"
"""Methods whose rules are here."""


def method_problems(config: TrainConfig) -> Iterator[Problem]:
    method, quant, name = config.method, config.quant.name, config.method.name
    if method._target_ == FULL and quant is QuantName.nf4:
        what = f"method={name} quant=nf4: 4-bit weights cannot be trained, only an adapter on them"
        yield Problem(what, f"method={name} quant=none, or method=qlora", "method=qlora")
    if method._target_ in (FULL, PEFT_ADAPTER) and method.lora is not None:
        allowed = "method.lora only with method=lora or method=qlora"
        yield Problem(f"method={name} with method.lora", allowed, f"method={name} method.lora=null")
    if method._target_ == LORA and name == "qlora" and quant is QuantName.none:
        allowed = "method=qlora (which sets quant=nf4), or method=lora quant=none"
        yield Problem("method=qlora quant=none: QLoRA is LoRA on a 4-bit base", allowed, "method=lora")
    if method._target_ == LORA and method.lora is None:
        yield Problem(f"method={name} without method.lora", fix=f"method={name}")
    elif method._target_ == LORA and method.lora is not None:
        yield from _lora_problems(method.lora, config.model)
        if quant is QuantName.nf4 and method.lora.init in (LoraInit.pissa, LoraInit.olora):
            what = f"method.lora.init={method.lora.init.value} quant=nf4: what it takes out of the base's weights"
            fix = "method.lora.init=default"
            yield Problem(f"{what} would be rounded to 4 bits", "default or gaussian; or quant=none", fix)
    if config.optim.loraplus_lr_ratio != 1 and method.lora is None:
        what = f"optim.loraplus_lr_ratio={config.optim.loraplus_lr_ratio:g} with method={name}, which has no A and B"
        yield Problem(what, "method=lora, method=qlora", "optim.loraplus_lr_ratio=1")


def _lora_problems(lora: LoraConfig, model: ModelConfig) -> Iterator[Problem]:
    targets = lora.target_modules
    names = [targets] if isinstance(targets, str) else targets
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        allowed, fix = "all-linear, or a list of module names", "'method.lora.target_modules=[q_proj,v_proj]'"
        yield Problem(f"method.lora.target_modules={targets!r}", allowed, fix)
        return
    tied = [name for name in names if name in EMBEDDING_MODULES]
    if tied and model.tied_embeddings:
        yield Problem(
            f"method.lora.target_modules holds {', '.join(tied)}, which {model.name} shares between input and output: "
            "merging the adapter would change both",
            "all-linear, or a list without them",
            "method.lora.target_modules=all-linear",
        )
