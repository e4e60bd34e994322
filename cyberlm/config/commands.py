"""The settings of the commands that use a finished run: export, chat and serve."""

from dataclasses import dataclass
from enum import StrEnum

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from cyberlm.config.bounds import at_least, between, one_of, run_folder
from cyberlm.config.schema import ACCELERATORS, EvaluateConfig, TrainConfig

ExportForm = StrEnum("ExportForm", "merged gguf adapter")
GgufType = StrEnum("GgufType", "f32 f16 bf16 q8_0")
Engine = StrEnum("Engine", "auto transformers vllm")


@dataclass
class ExportConfig:
    run: str = run_folder(MISSING)
    """Folder of a finished run."""
    to: ExportForm = ExportForm.merged
    """merged (a plain transformers folder), gguf (one file for llama.cpp), or adapter (a plain PEFT folder)."""
    out: str | None = None
    """Folder to make; null: RUN/export/<to>."""
    gguf_type: GgufType = GgufType.f16
    """Type of the weight matrices in a GGUF file; vectors stay float32."""
    questions: int = at_least(1, 200)
    """Test questions of the run that are answered before and after, to see that nothing is lost."""
    max_flip_share: float = between(0, 1, 0.01)
    """Share of these that may be answered otherwise after the export; with more, nothing is written."""
    accelerator: str = one_of(*ACCELERATORS)
    """auto, cpu or cuda; one device."""


@dataclass
class OpenConfig:
    """Settings that chat and serve share."""

    run: str = run_folder(MISSING)
    """Folder of a finished run, whose tuned model answers; it is merged first where export/merged is not there."""
    accelerator: str = one_of(*ACCELERATORS)
    """auto, cpu or cuda; one device."""


@dataclass
class ChatConfig(OpenConfig):
    max_new_tokens: int = at_least(1, 256)
    """Longest answer, in tokens."""
    temperature: float = between(0, 2, 0.0)
    """0: always the likeliest token; above: sampled, the flatter the higher."""


@dataclass
class ServeConfig(OpenConfig):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = between(0, 65535, 8000)
    """Port to listen on; 0 for any that is free."""
    allow_remote: bool = False
    """Listen on an address that other machines reach, although no password is needed."""
    engine: Engine = Engine.auto
    """transformers (one request at a time), vllm (GPU, many at once), or auto: vllm where it and a GPU are there."""


A_MODEL_AS_IT_IS = "chat and serve answer with a finished run; a model as it is: transformers serve FOLDER_OR_HUB_NAME"
REMOVED_KEYS = {
    **dict.fromkeys(("chat.model", "chat.quant", "chat.prompt"), A_MODEL_AS_IT_IS),
    **dict.fromkeys(("serve.model", "serve.quant", "serve.prompt"), A_MODEL_AS_IT_IS),
    "serve.max_new_tokens": "each request sets its own max_tokens",
}
"""Keys of older versions, and what there is instead."""


SCHEMAS = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "chat": ChatConfig,
    "serve": ServeConfig,
}
"""Root dataclass of each command."""


def register_schemas() -> None:
    """Puts the root schemas into Hydra's ConfigStore, so that every YAML file and override is type-checked."""
    for command, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{command}_schema", node=schema)
