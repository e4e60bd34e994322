"""A finished run that answers programs, or a person in the terminal: merged, linked with its prompt, and served."""

import gc
import os
import shutil
import signal
from pathlib import Path
from typing import NoReturn

import torch
from transformers.utils.import_utils import is_serve_available

from cyberlm.config.commands import ChatConfig, Engine, ExportConfig, OpenConfig, ServeConfig
from cyberlm.config.rules import is_loopback
from cyberlm.config.saved import config_of
from cyberlm.export.serving import (
    free_port,
    make_serving_cache,
    model_name,
    run_chat_client,
    running,
    server_command,
    server_environment,
)
from cyberlm.models.loading import pick_device
from cyberlm.runs.export import export
from cyberlm.runs.open_run import prompt_of
from cyberlm.runtime.errors import ConfigError, Problem
from cyberlm.runtime.progress import say


def serve(config: ServeConfig) -> NoReturn:
    """Becomes the server: vLLM's where it and a GPU are there, else transformers'."""
    vllm = _takes_vllm(config)
    port = free_port(config.host, config.port)
    folder, cache = _serving_folder(config)
    name = model_name(Path(config.run))
    host = f"[{config.host}]" if ":" in config.host else config.host
    if not is_loopback(config.host):
        say(f"Anyone who reaches {config.host} can use this model: there is no authentication.")
    say(f"{name} answers at http://{host}:{port}/v1 once it is loaded (Ctrl-C ends)")
    device = pick_device(config.accelerator).type
    command = server_command(folder, name, config.host, port, device=device, vllm=vllm)
    os.execvpe(command[0], command, server_environment(cache))


def chat(config: ChatConfig) -> None:
    """Starts transformers' server and its chat client in the terminal; both end together."""
    _check_installed()
    folder, cache = _serving_folder(config)
    gc.collect()
    torch.cuda.empty_cache()  # what the merge has taken: the server is another process
    name, port = model_name(Path(config.run)), free_port("127.0.0.1", 0)
    device = pick_device(config.accelerator).type
    server = server_command(folder, name, "127.0.0.1", port, device=device, vllm=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server ends with this process
    say(f"Loading {name} ...")
    with running(server, server_environment(cache), port):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's
        run_chat_client(folder, name, port, config.max_new_tokens, config.temperature)


def _takes_vllm(config: ServeConfig) -> bool:
    there = shutil.which("vllm") is not None
    usable = there and torch.cuda.is_available() and config.accelerator != "cpu"
    if config.engine is Engine.vllm and not usable:
        lacking = "there is no GPU for it" if there else "vllm is not installed"
        problem = Problem(lacking, "auto, transformers", "engine=transformers")
        raise ConfigError("engine=vllm cannot be used:", [problem])
    if usable and config.engine is not Engine.transformers:
        return True
    _check_installed()
    return False


def _check_installed() -> None:
    if not is_serve_available():
        raise ConfigError(
            "The server needs packages that are not installed:",
            [Problem("fastapi, openai, pydantic or uvicorn is missing", fix="pip install 'cyberlm[serve]'")],
        )


def _serving_folder(config: OpenConfig) -> tuple[Path, Path]:
    """The run's merged model, exported first where it has not been, with the run's prompt; and the cache it is in."""
    run = Path(config.run)
    merged, cache = run / "export" / "merged", run / "export" / "serve"
    if not merged.is_dir():
        export(ExportConfig(run=config.run, accelerator=config.accelerator))
    prompt = prompt_of(config_of(run), run)
    return make_serving_cache(merged, prompt, cache, model_name(run)), cache
