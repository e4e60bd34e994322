"""Base models and their tokenizers, loaded onto a device: plain or in 4 bits."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_model
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers import AutoHfQuantizer

from cyberlm.config.schema import Attention, Dtype, ModelConfig, ModelSource, QuantConfig, QuantName
from cyberlm.models.fast_layers import align_weights, use_fast_layers
from cyberlm.models.liger import choose_kernels
from cyberlm.models.loaded import LoadedModel, check_causal, open_causal
from cyberlm.models.model_files import ModelFiles, explain_errors, locate, tensor_files
from cyberlm.models.sharding import Sharding, shard
from cyberlm.models.tiny import hash_tensors, tiny_model, tiny_shape, tiny_tokenizer
from cyberlm.runtime import distributed
from cyberlm.runtime.errors import ModelError, Problem

log = logging.getLogger(__name__)


def pick_device(accelerator: str) -> torch.device:
    """cpu, or this process's GPU.

    Raises:
        ModelError: If a GPU is asked for and there is none.
    """
    if accelerator == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        torch.backends.cuda.enable_cudnn_sdp(False)  # it builds a plan for each shape, and every batch brings another
        return torch.device("cuda", distributed.local_rank() % torch.cuda.device_count())
    if accelerator == "cuda":
        raise ModelError("trainer.accelerator=cuda, but torch sees no GPU.", hint="Type trainer.accelerator=cpu")
    return torch.device("cpu")


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Loads the model's tokenizer, with a padding token that is not the end of a turn wherever one can be had."""
    if config.source is ModelSource.tiny:
        return tiny_tokenizer()
    tokenizer: PreTrainedTokenizerBase = _from_pretrained(AutoTokenizer, config, locate(config))
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        reserved = ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<pad>", "<unk>", "<|endoftext|>")
        known = tokenizer.get_vocab()
        tokenizer.pad_token = next((token for token in reserved if token in known), tokenizer.eos_token)
    return tokenizer


def read_shape(config: ModelConfig) -> PretrainedConfig:
    """Reads the configuration beside a model's weights, and not the weights."""
    if config.source is ModelSource.tiny:
        assert config.tiny is not None
        return tiny_shape(config.tiny, len(tiny_tokenizer()))
    shape: PretrainedConfig = _from_pretrained(AutoConfig, config, locate(config))
    return shape


def _from_pretrained(kind: Any, config: ModelConfig, files: ModelFiles, **options: Any) -> Any:
    options |= {"revision": files.revision, "trust_remote_code": config.trust_remote_code}
    return explain_errors(config, lambda: kind.from_pretrained(files.path, **options))


def load_base(
    config: ModelConfig, quant: QuantConfig, device: torch.device, *, trains_all_weights: bool = False
) -> LoadedModel:
    """Loads a base model onto `device`, ready for a method to attach what it trains.

    Raises:
        ModelError: If it cannot be had, or computes its logits in a way that the loss here would not repeat.
    """
    options: dict[str, Any] = {
        "dtype": weights_dtype(config, device, trains_all_weights),
        "device_map": {"": device},
        "use_safetensors": True,
    }
    if quant.name is QuantName.nf4:
        options["quantization_config"] = _nf4(quant, device)
    with _files(config) as files:
        shape = _from_pretrained(AutoConfig, config, files)
        _check_stored(config, shape, quant, trains_all_weights)
        options["attn_implementation"] = _attention(config, shape)
        causal = _from_pretrained(AutoModelForCausalLM, config, files, **options)
    if quant.name is QuantName.nf4:
        _keep_as_quantised(causal)
        for parameter in causal.parameters():  # one view of the weights' file would keep all of it in host memory
            if type(parameter) is nn.Parameter and parameter.device.type == "cpu":
                parameter.data = parameter.data.clone()
    causal.config.use_cache = True
    if device.type == "cuda":
        choose_kernels(causal, liger=config.use_liger_kernel)
    elif config.use_liger_kernel:
        log.warning("Liger's kernels need a GPU: %s computes with PyTorch's own, which round differently.", files.name)
    align_weights(causal)
    use_fast_layers(causal)
    return open_causal(causal, files.name, _digest(files, causal.config))


def load_sharded(
    config: ModelConfig,
    quant: QuantConfig,
    device: torch.device,
    attach: Callable[[LoadedModel], LoadedModel],
    sharding: Sharding,
    *,
    trains_all_weights: bool = False,
) -> LoadedModel:
    """Loads a base model of which each process keeps its share; none ever holds all of it.

    Args:
        attach: Makes trainable what a method trains, in a model that has its layers and no weights yet.

    Raises:
        ModelError: If it cannot be had, or not be read tensor by tensor.
    """
    with _files(config) as files:
        causal = explain_errors(config, lambda: _meta_model(config, files, quant, device, trains_all_weights))
        tensors = explain_errors(config, lambda: tensor_files(files))
        bare = LoadedModel(causal, causal, files.name, _digest(files, causal.config))
        loaded = explain_errors(config, lambda: shard(bare, attach, tensors, device, sharding))
    with torch.no_grad():
        loaded.within(check_causal, loaded)
    return loaded


def _meta_model(
    config: ModelConfig, files: ModelFiles, quant: QuantConfig, device: torch.device, trains_all_weights: bool
) -> PreTrainedModel:
    """A model without weights: its parameters are on the meta device, its buffers are real."""
    shape = _from_pretrained(AutoConfig, config, files)
    if getattr(shape, "quantization_config", None) is not None:
        what = f"{config.path or config.hub_id}: its weights lie quantised on the disk"
        raise ModelError("The model cannot be sharded.", [Problem(what, "whole weights", "trainer.strategy=ddp")])
    options = {
        "dtype": weights_dtype(config, device, trains_all_weights),
        "attn_implementation": _attention(config, shape),
        "trust_remote_code": config.trust_remote_code,
    }
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        causal: PreTrainedModel = AutoModelForCausalLM.from_config(shape, **options)
    if quant.name is QuantName.nf4:
        quantizer = AutoHfQuantizer.from_config(_nf4(quant, device), pre_quantized=False)
        quantizer.preprocess_model(causal, device_map=None)
        quantizer.postprocess_model(causal)
        causal.hf_quantizer = quantizer
        _keep_as_quantised(causal)
    causal.tie_weights()
    with contextlib.suppress(OSError):  # most models have no file of generation settings
        causal.generation_config = GenerationConfig.from_pretrained(files.path, revision=files.revision or "main")
    causal.config.use_cache = True
    use_fast_layers(causal)
    return causal.eval()


@contextlib.contextmanager
def _files(config: ModelConfig) -> Iterator[ModelFiles]:
    """`locate`; a random model is written to a folder for as long as the context lasts."""
    if config.source is not ModelSource.tiny:
        yield locate(config)
        return
    assert config.tiny is not None
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(config.tiny, len(tiny_tokenizer()))
        model.config.save_pretrained(folder)  # of the model, transformers would save nothing in ranks above 0
        save_model(model, f"{folder}/model.safetensors", {"format": "pt"})
        files = ModelFiles(folder, config.name, hash_tensors(model))
        del model
        yield files


def _digest(files: ModelFiles, shape: PretrainedConfig) -> str:
    return files.digest or getattr(shape, "_commit_hash", None) or "unknown"


def hash_weights(config: ModelConfig) -> str:
    """`LoadedModel.weights_hash` of a base model: its weights are hashed where they lie, and not loaded."""
    with _files(config) as files:
        return _digest(files, _from_pretrained(AutoConfig, config, files))


@dataclass
class BaseModel:
    """A base model that is loaded when it is first asked for.

    Attributes:
        check: Called with the hash of its weights; raises where they are not those that were tuned.
    """

    model: ModelConfig
    quant: QuantConfig
    device: torch.device
    check: Callable[[str], None]
    sharding: Sharding | None = None

    @cached_property
    def loaded(self) -> LoadedModel:
        if self.sharding is not None:
            return self.attached(lambda bare: bare)
        loaded = load_base(self.model, self.quant, self.device)
        self.check(loaded.weights_hash)
        return loaded

    def attached(self, attach: Callable[[LoadedModel], LoadedModel]) -> LoadedModel:
        """Attaches to the base, which may be changed in place; to a sharded one, before its weights are read."""
        if self.sharding is None:
            return attach(self.loaded)
        self.__dict__.pop("loaded", None)  # so that its memory can be had again
        loaded = load_sharded(self.model, self.quant, self.device, attach, self.sharding)
        self.check(loaded.weights_hash)
        return loaded


def _attention(config: ModelConfig, shape: PretrainedConfig) -> str:
    """`model.attention`; eager where that is sdpa and the architecture has none."""
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(shape), None)
    if config.attention is Attention.sdpa and architecture is not None and not architecture._supports_sdpa:
        return Attention.eager.value
    return config.attention.value


def weights_dtype(config: ModelConfig, device: torch.device, trains_all_weights: bool) -> torch.dtype:
    """Type that base weights are loaded in."""
    if config.dtype is Dtype.auto:
        frozen_on_gpu = device.type == "cuda" and not trains_all_weights
        return torch.bfloat16 if frozen_on_gpu else torch.float32
    return torch.float32 if config.dtype is Dtype.float32 else torch.bfloat16


# -------------------------------------------------------------------------------------------------- 4-bit weights


def _nf4(quant: QuantConfig, device: torch.device) -> BitsAndBytesConfig:
    compute = {Dtype.float32: torch.float32, Dtype.bfloat16: torch.bfloat16}.get(
        quant.compute_dtype, torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quant.double_quant,
        bnb_4bit_compute_dtype=compute,
    )


def _check_stored(config: ModelConfig, shape: PretrainedConfig, quant: QuantConfig, trains_all_weights: bool) -> None:
    """Refuses weights that lie quantised on the disk, unless they are bitsandbytes' nf4 and used as such."""
    stored = getattr(shape, "quantization_config", None)
    if stored is None:
        return
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    kind = stored.get("bnb_4bit_quant_type") if stored.get("load_in_4bit") else stored.get("quant_method")
    what = f"{config.path or config.hub_id}: its weights lie quantised on the disk ({kind})"
    if kind != QuantName.nf4.value:
        problem = Problem(what, "whole weights, or bitsandbytes' nf4")
    elif trains_all_weights or quant.name is not QuantName.nf4:
        allowed = "an adapter on 4-bit weights, or the whole weights"
        problem = Problem(what, allowed, "method=qlora, or quant=nf4 in evaluate")
    else:
        return
    raise ModelError(f"The model {config.name} cannot be loaded.", [problem])


def _keep_as_quantised(causal: nn.Module) -> None:
    """Keeps 4-bit weights as they were quantised, on every CPU.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a layer in its first forward pass in eval mode, in place: its
    scales become bfloat16 and its results too. Scoring the base model would change the weights that are trained next,
    and figures would depend on the CPU.
    """
    for module in causal.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  # torch types modules' attributes
