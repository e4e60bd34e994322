"""The server, in a process of its own, and OpenAI's client talking to it."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from support import config_of, sample_questions, tuned_run

from cyberlm.config.command_rules import command_problems, is_loopback
from cyberlm.config.commands import ChatConfig, Engine, ServeConfig
from cyberlm.evaluation.scoring import answering, generate
from cyberlm.runs import serving
from cyberlm.runs.open_run import open_model
from cyberlm.runtime.errors import ConfigError, RunError

ROOT = Path(__file__).parent.parent
HELLO = [{"role": "user", "content": "hello"}]

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # transformers deprecates a name that peft still uses
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch and Lightning deprecate each other's names
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CYBERLM_CACHE_DIR", str(folder / "cache"))
        yield tuned_run(folder / "run", "method=lora")


def started(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A server at a free port, and its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "cyberlm.serve", *arguments, "port=0", "accelerator=cpu"]
    process = subprocess.Popen(line, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    said = process.stdout.readline()
    assert " answers at http" in said, said + process.stderr.read()
    return process, said.split()[3]


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    process, url = started(f"run={run}", "max_new_tokens=64")
    yield url
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in told


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60) as made:
        yield made


def test_the_openai_client_is_answered_as_the_run_answers(run: Path, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["run"]
    opened = open_model(ChatConfig(run=str(run), accelerator="cpu"))
    prompt = opened.prompt
    for question in sample_questions(3):
        messages = [{"role": "user", "content": prompt.user_message(question)}]
        got = client.chat.completions.create(model="run", messages=messages, max_tokens=8)
        ids = prompt.encode([question])[0].prompt_ids
        with answering(opened.loaded.model):
            new = generate(opened.loaded, [ids], prompt.stop_ids, 8)[0]
        assert got.choices[0].message.content == prompt.tokenizer.decode(new, skip_special_tokens=True)
        assert got.choices[0].finish_reason == "stop" and got.object == "chat.completion"
        assert (
            got.usage.prompt_tokens == len(ids) and got.usage.completion_tokens == len(new) + 1
        )  # and the end of turn


def test_a_stream_says_the_same_in_pieces() -> None:
    process, url = started("model=tiny_random")
    try:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            asked = {"model": "tiny_random", "messages": HELLO, "max_tokens": 48}
            whole = client.chat.completions.create(**asked)
            chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
            texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
            assert "".join(texts) == whole.choices[0].message.content and len(texts) > 4
            assert chunks[0].choices[0].delta.role == "assistant"
            assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
            assert chunks[-1].usage == whole.usage and whole.usage.completion_tokens == 48
            stop = whole.choices[0].message.content[8:10]
            cut = client.chat.completions.create(**asked, stop=[stop])
            assert cut.choices[0].message.content == whole.choices[0].message.content.split(stop)[0]
            seeds = [client.chat.completions.create(**asked, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
            first, again, other = (got.choices[0].message.content for got in seeds)
            assert first == again != other
            with client.chat.completions.create(**asked | {"max_tokens": 256}, stream=True) as left:
                next(iter(left))  # and the client goes away
            assert (
                client.chat.completions.create(**asked).choices[0].message.content == whole.choices[0].message.content
            )
    finally:
        process.kill()
        process.communicate()


def test_requests_at_the_same_time_take_turns(client: openai.OpenAI) -> None:
    def ask(number: int) -> str:
        messages = [{"role": "user", "content": f"question {number % 2}"}]
        got = client.chat.completions.create(
            model="run", messages=messages, temperature=1.2, seed=number % 2, max_tokens=32
        )
        return got.choices[0].message.content

    alone = [ask(0), ask(1)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == alone * 3


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"model": "gpt-5"}, 404, "There is no model 'gpt-5' here, only 'run'."),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "more than the 4096"),
        ({"max_tokens": 65}, 400, "this server gives 64 at most"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 2}, 400, "n: only 1 or null here"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools: only [] or null here"),
        ({"tool_choice": "required"}, 400, 'tool_choice: only "none" or "auto" or null here'),
        ({"response_format": {"type": "json_object"}}, 400, 'response_format: only {"type": "text"} or null here'),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"extra_body": {"colour": "blue"}}, 400, "colour"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}]}, 400, "tool_calls"),
        ({"messages": [{"role": "user", "content": "x" * (1 << 20)}]}, 413, "longer than"),
    ],
)
def test_bad_requests_are_told_in_openais_format(changed, status: int, words: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"model": "run", "messages": HELLO, **changed})
    assert caught.value.status_code == status
    assert words in caught.value.body["message"] and caught.value.body["type"] == "invalid_request_error"


def test_what_clients_send_without_effect_is_answered(client: openai.OpenAI) -> None:
    plain = {"model": "run", "messages": [{"role": "system", "content": "Be brief."}, *HELLO], "max_tokens": 8}
    expected = client.chat.completions.create(**plain).choices[0].message
    without_effect = {
        **{"tools": [], "tool_choice": "none", "logit_bias": {}, "response_format": {"type": "text"}, "store": False},
        **{"n": 1, "logprobs": False, "frequency_penalty": 0, "presence_penalty": 0.0, "parallel_tool_calls": True},
        **{"modalities": ["text"], "metadata": None, "service_tier": "auto", "user": "someone"},
    }
    assert client.chat.completions.create(**plain, **without_effect).choices[0].message == expected
    nothing = dict.fromkeys(("seed", "stop", "top_p", "stream_options", "audio", "functions", "temperature"))
    assert client.chat.completions.create(**plain, extra_body=nothing).choices[0].message == expected
    developer = [{"role": "developer", "content": "Be brief."}, *HELLO]
    assert client.chat.completions.create(**plain | {"messages": developer}).choices[0].message == expected
    # an answer's message sent back as the client has it, and one that only called a tool
    history = [*HELLO, expected.model_dump(), {"role": "user", "content": "and?"}]
    assert client.chat.completions.create(**plain | {"messages": history}).choices[0].message.content is not None
    empty = [*HELLO, {"role": "assistant", "content": None}, {"role": "user", "content": "and?"}]
    assert client.chat.completions.create(**plain | {"messages": empty}).choices[0].message.content is not None


def status_of(url: str, body: bytes | None = None, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, named), timeout=30) as got:
            return got.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_what_no_client_sends_is_refused(address: str) -> None:
    chat = f"{address}/chat/completions"
    assert status_of(chat, b"{", content_type="application/json") == 400
    assert status_of(chat, b"\xff", content_type="application/json") == 400
    assert status_of(chat, b"{}", content_type="text/plain") == 415  # what a web page elsewhere may send
    assert status_of(f"{address}/models", host="attacker.example") == 400  # a name that was made to lead here
    assert status_of(f"{address}/nothing") == 404
    assert status_of(chat) == 405
    assert status_of(f"{address}/models") == 200


# ------------------------------------------------------------------------------------------------ before it answers


def test_other_machines_are_answered_only_where_asked_for() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.2", "example.org")))
    (problem,) = command_problems(ServeConfig(model=config_of().model, host="0.0.0.0"))
    assert "nobody is asked for a password" in problem.what and problem.fix == "host=0.0.0.0 allow_remote=true"
    assert list(command_problems(ServeConfig(model=config_of().model, host="0.0.0.0", allow_remote=True))) == []


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    with pytest.raises(ConfigError, match="uvicorn") as caught:
        serving.serve(ServeConfig(model=config_of().model))
    assert "pip install 'cyberlm[serve]'" in caught.value.screen()


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"127.0.0.1:{port} cannot be listened on"):
            serving.serve(ServeConfig(model=config_of("method=sft").model, port=port, accelerator="cpu"))


def test_vllm_is_given_the_adapter_beside_its_base(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="vllm is not installed"):
        serving.serve(ServeConfig(run=str(run), engine=Engine.vllm))
    text = (run / "config.yaml").read_text().replace("hub_id: null", "hub_id: someone/llama")
    text = text.replace("rank: 16", "rank: 20")
    copy = tmp_path / "mine"
    copy.mkdir()
    (copy / "adapter").symlink_to(run / "adapter")
    (copy / "config.yaml").write_text(text)
    assert serving.vllm_command(ServeConfig(run=str(copy), port=9)) == [
        *("vllm", "serve", "someone/llama", "--enable-lora", "--max-lora-rank", "32"),
        *("--lora-modules", f"mine={copy / 'adapter'}", "--host", "127.0.0.1", "--port", "9"),
    ]
    assert serving._fits_vllm(ServeConfig(run=str(copy))) and not serving._fits_vllm(ServeConfig(run=str(run)))
    (copy / "config.yaml").write_text(text.replace("use_dora: false", "use_dora: true"))
    assert not serving._fits_vllm(ServeConfig(run=str(copy)))
