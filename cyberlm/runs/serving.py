"""A server for programs that speak OpenAI's chat completions: vLLM where there is one and a GPU, else our own."""

import contextlib
import importlib.util
import os
import socket
import sys
from pathlib import Path

import torch

from cyberlm.config.command_rules import is_loopback
from cyberlm.config.commands import Engine, ServeConfig
from cyberlm.config.saved import config_of
from cyberlm.config.schema import ModelConfig, TrainConfig
from cyberlm.models.adapters import MODEL_FOLDER
from cyberlm.runs.open_run import open_model, prompt_of, tuned_folder
from cyberlm.runtime.errors import ConfigError, Problem, RunError
from cyberlm.runtime.progress import say

NEEDS = ("starlette", "uvicorn", "pydantic")
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` of vLLM takes."""


def serve(config: ServeConfig) -> None:
    """Answers until it is stopped.

    Raises:
        ConfigError: If a package is missing.
        RunError: If the address cannot be listened on.
    """
    if not is_loopback(config.host):
        say(f"Anyone who reaches {config.host} can use this model: there is no authentication.")
    if _takes_vllm(config):
        line = vllm_command(config)
        say(" ".join(line))
        os.execvp(line[0], line)
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            "The server needs packages that are not installed:",
            [Problem(", ".join(missing), fix="pip install 'cyberlm[serve]'")],
        )
    with _listening(config) as listener:
        _answer(config, listener)


def _takes_vllm(config: ServeConfig) -> bool:
    there = importlib.util.find_spec("vllm") is not None
    if config.engine is Engine.vllm and not (there and torch.cuda.is_available()):
        lacking = "torch sees no GPU" if there else "vllm is not installed"
        raise ConfigError("engine=vllm cannot be used:", [Problem(lacking, "auto, torch", "engine=torch")])
    if config.engine is not Engine.auto:
        return config.engine is Engine.vllm
    return there and torch.cuda.is_available() and config.accelerator != "cpu" and _fits_vllm(config)


def _fits_vllm(config: ServeConfig) -> bool:
    """Whether vLLM can load what is asked for as it is: neither a DoRA adapter nor a chosen 4-bit base."""
    if config.run is None:
        return config.model is not None and _base(config.model) is not None and config.quant is None
    trained = config_of(Path(config.run))
    lora = trained.method.lora
    return lora is None or not (_base(trained.model) is None or lora.use_dora or lora.rank > VLLM_RANKS[-1])


def _base(model: ModelConfig) -> str | None:
    """What vLLM calls a base model by."""
    return model.hub_id or model.path


def vllm_command(config: ServeConfig) -> list[str]:
    """The command that serves a run (its adapter beside the base), or a model as it is, with vLLM.

    Raises:
        RunError: If the prompt is not the one that the run was tuned with.
    """
    where = ["--host", config.host, "--port", str(config.port)]
    if config.run is None:
        assert config.model is not None
        return [
            "vllm",
            "serve",
            str(_base(config.model)),
            "--served-model-name",
            config.model.name,
            *where,
        ]
    run = Path(config.run)
    trained: TrainConfig = config_of(run)
    prompt_of(trained, run)
    name = run.resolve().name
    if trained.method.lora is None:
        return ["vllm", "serve", str(run / MODEL_FOLDER), "--served-model-name", name, *where]
    adapter = tuned_folder(trained, run)
    rank = next(rank for rank in VLLM_RANKS if rank >= trained.method.lora.rank)
    base = str(_base(trained.model))
    options = ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{name}={adapter}"]
    return ["vllm", "serve", base, *options, *where]


def _listening(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise RunError(
            f"{config.host}:{config.port} cannot be listened on.",
            [Problem(error.strerror or str(error), "an address of this machine and a free port", "port=0")],
        ) from error


def _answer(config: ServeConfig, listener: socket.socket) -> None:
    import uvicorn  # these two need the packages of the extra

    from cyberlm.runs.completions import build_app

    opened = open_model(config)
    app = build_app(opened, config.max_new_tokens, loopback=is_loopback(config.host))
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"{opened.name} answers at http://{shown}:{port}/v1 (Ctrl-C ends)")
    sys.stdout.flush()
    settings = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=[listener])
