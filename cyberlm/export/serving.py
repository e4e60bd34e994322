"""Serving a merged model: vLLM's server or transformers' own, with the run's prompt, and transformers' chat client."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transformers import GenerationConfig

from cyberlm.runtime.errors import Problem, RunError
from cyberlm.tasks.chat_template import PROBE, TEMPLATE_DATE
from cyberlm.tasks.prompts import Prompt

NEARLY_GREEDY = 1e-4
"""Temperature of a request that names none. Transformers' server samples at a request's temperature only where the
model's own settings sample; this one gives the likeliest token."""

OWN_FILES = ("chat_template.jinja", "generation_config.json")
TRANSFORMERS = (sys.executable, "-m", "transformers.cli.transformers")

CHAT_CLIENT = """\
import signal
from transformers.cli.transformers import app
signal.signal(signal.SIGINT, lambda *given: signal.default_int_handler(*given))
app()
"""
"""Transformers' command line; with Python's own handler of Ctrl-C, asyncio would go on waiting for a line."""

WITH_SYSTEM = (
    "{% if not messages or messages[0]['role'] != 'system' %}"
    "{% set messages = [{'role': 'system', 'content': SYSTEM}] + messages %}{% endif %}"
)
SYSTEM_IN_USER = (
    "{% if messages[1:] and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' %}"
    "{% set joined = messages[:2] | map(attribute='content') | select | join('\\n\\n') %}"
    "{% set messages = [{'role': 'user', 'content': joined}] + messages[2:] %}{% endif %}"
)
SETTINGS = "{% set date_string = DATE %}{% set enable_thinking = false %}{% set thinking = false %}"
RENDERED = (
    "{% set rendered %}SOURCE{% endset %}{{ rendered.rstrip(' ') + OPENING if add_generation_prompt else rendered }}"
)
PLAIN = "{{ BOS }}{{ messages | map(attribute='content') | join('\\n\\n') }}{{ CUE }}"


def model_name(run: Path) -> str:
    """The name of a run's folder as the hub spells names: letters, digits, and single `-` or `.` between them."""
    return "-".join(re.findall(r"\w+(?:\.\w+)*", run.resolve().name))[:96] or "run"


def make_serving_cache(merged: Path, prompt: Prompt, cache: Path, name: str) -> Path:
    """Makes a cache of the hub that holds one model: a merged one, with a chat template that writes the run's prompt.

    A server that is offline then finds the model by its name, and lists it. The model's folder is returned.
    """
    template = serving_template(prompt)
    shutil.rmtree(cache, ignore_errors=True)
    repository = cache / f"models--{name}"
    folder = repository / "snapshots" / merged.name
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(merged.name)
    for file in merged.iterdir():
        if file.is_file() and file.name not in OWN_FILES:
            (folder / file.name).symlink_to(os.path.relpath(file.resolve(), folder.resolve()))
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    stop = {"eos_token_id": list(prompt.stop_ids), "pad_token_id": prompt.tokenizer.pad_token_id}
    GenerationConfig(do_sample=True, temperature=NEARLY_GREEDY, top_k=0, **stop).save_pretrained(folder)
    return folder


def serving_template(prompt: Prompt) -> str:
    """Jinja chat template that renders messages as `prompt` does: system text, date, thinking and opening of an answer.

    Raises:
        RunError: If a question is not the same tokens as in training.
    """
    system, template = prompt.config.system, prompt.template
    text = WITH_SYSTEM.replace("SYSTEM", _quoted(system)) if system else ""
    if template is None:
        bos = str(prompt.tokenizer.bos_token) if prompt.adds_bos() else ""
        text += PLAIN.replace("BOS", _quoted(bos)).replace("CUE", _quoted(f"\n{prompt.config.plain_cue}"))
    else:
        text += "" if template.takes_system else SYSTEM_IN_USER
        text += SETTINGS.replace("DATE", _quoted(TEMPLATE_DATE.strftime("%d %b %Y")))
        rendered = RENDERED.replace("OPENING", _quoted(template.opening))
        text += rendered.replace("SOURCE", template.timeless.removesuffix("\n"))
    question = [{"role": "user", "content": prompt.task.prompt(PROBE)}]
    given = prompt.tokenizer.apply_chat_template(question, chat_template=text, add_generation_prompt=True)
    if given["input_ids"] != prompt.encode_messages(question):  # type: ignore[call-overload,index]
        raise RunError("This model's chat template cannot be served: a question would not be the run's own prompt.")
    return text


def _quoted(text: str) -> str:
    """Text as a string of Jinja's language."""
    return json.dumps(text, ensure_ascii=False)


def free_port(host: str, port: int) -> int:
    """The port, or any that is free where it is 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        problem = Problem(error.strerror or str(error), "an address of this machine and a free port", "port=0")
        raise RunError(f"{host}:{port} cannot be listened on.", [problem]) from error


def server_command(folder: Path, name: str, host: str, port: int, *, device: str, vllm: bool) -> list[str]:
    """Command that serves the model in `folder`, which `make_serving_cache` has made, by its name."""
    where = ["--host", host, "--port", str(port)]
    if vllm:
        greedy = ["--override-generation-config", '{"temperature": 0}']
        return ["vllm", "serve", str(folder), "--served-model-name", name, *greedy, *where]
    return [*TRANSFORMERS, "serve", name, "--device", device, "--log-level", "error", *where]


def server_environment(cache: Path) -> dict[str, str]:
    """Environment in which the hub is the cache of one model, and nothing asks the network."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "DO_NOT_TRACK": "1"}
    return {**os.environ, **quiet, "HF_HUB_CACHE": str(cache.resolve())}


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], port: int) -> Iterator[None]:
    """Runs a server, silently, for as long as the context lasts.

    Raises:
        RunError: If it ends before it listens.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                if process.poll() is not None:
                    output.seek(0)
                    raise RunError("The server ended before it listened:", [Problem(output.read()[-2000:].strip())])
                time.sleep(0.2)
            yield
        finally:
            process.kill()
            process.wait()


def run_chat_client(folder: Path, name: str, port: int, max_new_tokens: int, temperature: float) -> None:
    """Runs transformers' chat client of a server on this machine until the user leaves it."""
    flags = [f"max_new_tokens={max_new_tokens}", *([f"temperature={temperature}"] if temperature else [])]
    settings = ["--generation-config", str(folder / "generation_config.json")]
    command = [sys.executable, "-c", CHAT_CLIENT, "chat", name, f"http://127.0.0.1:{port}/v1", *flags, *settings]
    # requests to this machine count as the network
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    subprocess.run(command, env=environment, check=False)
