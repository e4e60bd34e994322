"""A finished run served for real by transformers' server: OpenAI's client and the chat client talk to it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import openai
import psutil
import pytest
import torch
from support import sample_questions, tuned_run
from typed import type_line

from cyberlm.config.commands import ChatConfig, Engine, ServeConfig
from cyberlm.config.rules import check_config, is_loopback
from cyberlm.config.saved import config_of
from cyberlm.evaluation.scoring import eval_mode, generate
from cyberlm.export.serving import model_name, server_command
from cyberlm.runs import serving
from cyberlm.runs.open_run import load_tuned, prompt_of
from cyberlm.runtime.errors import ConfigError, RunError

ROOT = Path(__file__).parents[2]
SAVED = ROOT / "tests" / "saved_runs"
HELLO = [{"role": "user", "content": "hello"}]
FEW = ("data.max_train=4", "data.max_validation=2", "data.max_test=4", "trainer.max_epochs=1")
EMBEDDED = ("model=smollm2_135m", "prompt=text", *FEW)
RUNS = {"lora": ("method=lora",), "sft": ("method=sft",), "embedded": EMBEDDED}
KINDS = ["lora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in RUNS if kind != "lora")]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # between libraries


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned_run(tmp_path_factory.mktemp("serve") / f"run--{request.param}", *RUNS[request.param])


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line, pipe = [sys.executable, "-m", "cyberlm", *arguments], subprocess.PIPE
    return subprocess.Popen(line, cwd=cwd, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[openai.OpenAI]:
    with command("serve", f"run={run}", "port=0", "accelerator=cpu") as process:
        try:
            assert "answers differ" in read_until(" answers at ", process.stdout, process.stderr)
            loaded = read_until("Uvicorn running", process.stderr)
            address = next(word for word in loaded.split() if word.startswith("http")) + "/v1"
            with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=120) as made:
                yield made
            process.send_signal(signal.SIGINT)
            assert "Traceback" not in process.communicate(timeout=60)[1]
        finally:
            process.kill()


def read_until(words: str, stream: IO[str], errors: IO[str] | None = None) -> str:
    """What is said up to the line with `words`."""
    said = ""
    for line in stream:
        said += line
        if words in line:
            return said
    raise AssertionError(said + (errors.read() if errors else ""))


def test_openais_client_is_answered_as_the_run_answers(run: Path, client: openai.OpenAI) -> None:
    name = model_name(run)
    assert [model.id for model in client.models.list()] == [name] == [run.name.replace("--", "-")]
    trained = config_of(run)
    prompt, tuned = prompt_of(trained, run), load_tuned(trained, run, torch.device("cpu"))
    for question in sample_questions(3):
        ids = prompt.encode([question])[0].prompt_ids
        with eval_mode(tuned.model):
            new = generate(tuned, [ids], prompt.stop_ids, 8)[0]
        messages = [{"role": "user", "content": prompt.task.prompt(question)}]
        got = client.chat.completions.create(model=name, messages=messages, max_tokens=8)
        assert got.choices[0].message.content == prompt.tokenizer.decode(new, skip_special_tokens=True)
        assert got.usage.prompt_tokens == len(ids) and got.usage.completion_tokens - len(new) in (0, 1)  # end of turn
        assert got.choices[0].finish_reason == ("stop" if got.usage.completion_tokens < 8 else "length")
    asked = {"model": name, "messages": HELLO, "max_tokens": 24, "temperature": 4.0, "seed": 3}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(pieces) == whole and len(pieces) > 2
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked | {"model": "gpt-5"})
    assert "pinned" in caught.value.response.json()["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["lora"], indirect=True)
def test_chat_answers_what_comes_through_a_pipe(run: Path, tmp_path: Path) -> None:
    with command("chat", f"run={run}", "max_new_tokens=4", "accelerator=cpu", cwd=tmp_path) as process:
        said, told = process.communicate("hello\n", timeout=120)
    trained = config_of(run)
    prompt, tuned = prompt_of(trained, run), load_tuned(trained, run, torch.device("cpu"))
    with eval_mode(tuned.model):
        new = generate(tuned, [prompt.encode_messages(HELLO)], prompt.stop_ids, 4)[0]
    assert process.returncode == 0 and "Traceback" not in told
    assert f"<{model_name(run)}>:" in said and prompt.tokenizer.decode(new, skip_special_tokens=True) in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("run", ["lora"], indirect=True)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_chat_ends_quietly_with_its_server(signum: int, run: Path) -> None:
    with command("chat", f"run={run}", "accelerator=cpu") as process:
        read_until("!exit", process.stdout, process.stderr)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2
        everyone = (process, *children) if signum == signal.SIGINT else (process,)  # as a terminal does
        for item in everyone:
            item.send_signal(signum)
        _, told = process.communicate(timeout=60)
    assert "Traceback" not in told
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_mistakes_are_one_screen(tmp_path: Path) -> None:
    def told(*line: str) -> str:
        ended = type_line(tmp_path, *line)
        assert (ended.code, ended.out) == (1, "")
        return ended.err

    assert "run has no value" in told("serve")
    screen = told("serve", "model=tiny_random", "max_new_tokens=3", "engine=torch", "run=x")
    for words in ("no key 'model' any more: chat and serve answer", "sets its own max_tokens", "transformers, vllm"):
        assert words in screen
    screen = told("chat", "run=.", "temperature=3", "max_new_tokens=0")
    for words in ("run=.: there is no config.yaml in it", "temperature=3", "max_new_tokens=0"):
        assert words in screen


def test_other_machines_are_answered_only_where_asked_for() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.2", "example.org")))
    with pytest.raises(ConfigError) as caught:
        check_config(ServeConfig(run=str(SAVED / "lora"), host="0.0.0.0"))
    (problem,) = caught.value.problems
    assert "nobody is asked for a password" in problem.what and problem.fix == "host=0.0.0.0 allow_remote=true"
    check_config(ServeConfig(run=str(SAVED / "lora"), host="0.0.0.0", allow_remote=True))


def test_what_is_missing_or_taken_is_told_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(SAVED / "lora")
    with pytest.raises(RunError, match=r"There is no results\.json"):
        serving.serve(ServeConfig(run=str(SAVED / "stopped"), port=0, accelerator="cpu"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"127.0.0.1:{port} cannot be listened on"):
            serving.serve(ServeConfig(run=run, port=port))
    with pytest.raises(ConfigError, match="vllm is not installed"):
        serving.serve(ServeConfig(run=run, engine=Engine.vllm))
    monkeypatch.setattr(serving, "is_serve_available", lambda: False)
    for start, config in ((serving.serve, ServeConfig(run=run)), (serving.chat, ChatConfig(run=run))):
        with pytest.raises(ConfigError, match=r"pip install 'cyberlm\[serve\]'"):
            start(config)


def test_vllm_serves_the_merged_model_with_the_runs_name() -> None:
    assert server_command(Path("merged"), "mine", "127.0.0.1", 9, device="cuda", vllm=True) == [
        *("vllm", "serve", "merged", "--served-model-name", "mine"),
        *("--override-generation-config", '{"temperature": 0}', "--host", "127.0.0.1", "--port", "9"),
    ]
