"""Rules across the fields of export, chat and serve."""

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from cyberlm.config.commands import ChatConfig, ExportConfig, OpenConfig, ServeConfig
from cyberlm.runtime.errors import Problem

A_RUN = "the folder of a finished run, under outputs/"
LARGEST_PORT = 65535


def command_problems(config: object) -> Iterator[Problem]:
    """What is wrong with the keys of these commands themselves; groups have rules of their own."""
    if isinstance(config, ExportConfig):
        yield from _export_problems(config)
    if isinstance(config, OpenConfig):
        yield from _run_problems(config.run)
    if isinstance(config, ChatConfig):
        if not 0 <= config.temperature <= 2:
            yield Problem(f"temperature={config.temperature:g}", "0 to 2")
        if config.max_new_tokens < 1:
            yield Problem(f"max_new_tokens={config.max_new_tokens}", "1 or more")
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


def _serve_problems(config: ServeConfig) -> Iterator[Problem]:
    if not 0 <= config.port <= LARGEST_PORT:
        yield Problem(f"port={config.port}", f"0 to {LARGEST_PORT}")
    if not is_loopback(config.host) and not config.allow_remote:
        yield Problem(
            f"host={config.host}: other machines could reach it, and nobody is asked for a password",
            "127.0.0.1, or allow_remote=true as well",
            f"host={config.host} allow_remote=true",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
