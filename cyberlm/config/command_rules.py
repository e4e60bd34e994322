"""Rules across the fields of export, chat and serve."""

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from cyberlm.config.commands import ChatConfig, Engine, ExportConfig, OpenConfig, ServeConfig
from cyberlm.config.schema import QuantName
from cyberlm.runtime.errors import Problem

A_RUN = "the folder of a finished run, under outputs/"
LARGEST_PORT = 65535


def command_problems(config: object) -> Iterator[Problem]:
    """What is wrong with the keys of these commands themselves; groups have rules of their own."""
    if isinstance(config, ExportConfig):
        yield from _export_problems(config)
    if isinstance(config, OpenConfig):
        yield from _open_problems(config)
    if isinstance(config, ChatConfig) and not 0 <= config.temperature <= 2:
        yield Problem(f"temperature={config.temperature:g}", "0 to 2")
    if isinstance(config, ServeConfig):
        yield from _serve_problems(config)


def _export_problems(config: ExportConfig) -> Iterator[Problem]:
    yield from _run_problems(config.run)
    if config.questions < 1:
        yield Problem(f"questions={config.questions}", "1 or more")
    if not 0 <= config.max_flip_share <= 1:
        yield Problem(f"max_flip_share={config.max_flip_share:g}", "0 to 1")
    if config.out is not None and Path(config.out).exists():
        yield Problem(f"out={config.out} is there already", "a folder that does not exist yet")


def _run_problems(run: str) -> Iterator[Problem]:
    if not Path(run).is_dir():
        yield Problem(f"run={run} is not a folder", A_RUN)
    elif not (Path(run) / "config.yaml").is_file():
        yield Problem(f"run={run} is not a run's folder: it has no config.yaml", A_RUN)


def _open_problems(config: OpenConfig) -> Iterator[Problem]:
    if config.run is None and config.model is None:
        yield Problem("neither run nor model is given", f"run: {A_RUN}; or a model as it is", "run=outputs/RUN")
    if config.run is not None:
        yield from _run_problems(config.run)
        given = [name for name in ("model", "quant", "prompt") if getattr(config, name) is not None]
        for name in given:
            yield Problem(f"run={config.run} with {name}=...", f"the run's own {name}", f"run={config.run}")
    if config.max_new_tokens < 1:
        yield Problem(f"max_new_tokens={config.max_new_tokens}", "1 or more")


def _serve_problems(config: ServeConfig) -> Iterator[Problem]:
    if not 0 <= config.port <= LARGEST_PORT:
        yield Problem(f"port={config.port}", f"0 to {LARGEST_PORT}")
    if not is_loopback(config.host) and not config.allow_remote:
        yield Problem(
            f"host={config.host}: other machines could reach it, and nobody is asked for a password",
            "127.0.0.1, or allow_remote=true as well",
            f"host={config.host} allow_remote=true",
        )
    if config.engine is Engine.vllm and config.quant is not None and config.quant.name is not QuantName.none:
        yield Problem(f"engine=vllm quant={config.quant.name.name}", "quant=none, or engine=torch", "engine=torch")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
