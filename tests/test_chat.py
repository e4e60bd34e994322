"""The chat: what a person types, what comes through a pipe, and how a reply is streamed and stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import config_of, sample_questions, tuned_run

from cyberlm.config.commands import ChatConfig
from cyberlm.evaluation.inference import predict
from cyberlm.evaluation.scoring import answering, generate
from cyberlm.runs.chatting import Conversation
from cyberlm.runs.open_run import Opened, open_model
from cyberlm.runtime.errors import ConfigError, DataError
from cyberlm.streaming import Reply, Sampling

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # transformers deprecates a name that peft still uses
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch and Lightning deprecate each other's names
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("chat")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CYBERLM_CACHE_DIR", str(folder / "cache"))
        yield tuned_run(folder / "run", "method=lora")


@pytest.fixture(scope="module")
def opened(run: Path) -> Opened:
    return open_model(ChatConfig(run=str(run), accelerator="cpu"))


@pytest.fixture(scope="module")
def untuned() -> Opened:
    """Random weights: replies of many bytes that end only at their limit."""
    return open_model(ChatConfig(model=config_of().model, accelerator="cpu"))


def greedy(opened: Opened, ids: list[int] | tuple[int, ...], most: int) -> str:
    prompt = opened.prompt
    with answering(opened.loaded.model):
        new = generate(opened.loaded, [ids], prompt.stop_ids, most)[0]
    return prompt.tokenizer.decode(new, skip_special_tokens=True)


def test_a_question_is_asked_as_in_the_evaluation(opened: Opened) -> None:
    config = ChatConfig(max_new_tokens=8)
    for question in sample_questions(4):
        encoded = opened.prompt.encode([question])
        expected = predict(opened.loaded, opened.prompt, [question], encoded, opened.run.evaluation, 4096, "x")[0]
        said = "".join(Conversation(opened, config).answer(" | ".join([question.question, *question.options])))
        reply, _, verdict = said.rpartition("\n")
        assert reply == greedy(opened, encoded[0].prompt_ids, 8)
        assert verdict == f"[likeliest option: {'ABCD'[expected.choice]}) {question.options[expected.choice]}]"
    with pytest.raises(DataError, match="1 options"):
        list(Conversation(opened, config).answer("one | two"))


def test_a_space_that_the_template_writes_is_no_part_of_a_reply(untuned: Opened) -> None:
    prompt = untuned.prompt
    ids = prompt.encode_messages([{"role": "user", "content": "hi"}])

    def reply(space: str) -> str:
        return "".join(Reply(untuned.loaded, prompt.tokenizer, ids, prompt.stop_ids, Sampling(16), space))

    whole = reply("")
    assert len(whole) > 2 and reply(whole[0]) == whole[1:] and reply("not there") == whole


def test_a_conversation_remembers_and_begins_with_the_system_message(opened: Opened) -> None:
    conversation = Conversation(opened, ChatConfig(max_new_tokens=4))
    first = "".join(conversation.answer("hello"))
    second = "".join(conversation.answer("and now?"))
    system = opened.prompt.config.system
    head = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
    for role, text in (("user", "hello"), ("assistant", first), ("user", "and now?")):
        head += f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"
    head += "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ids = opened.prompt.tokenizer(head, add_special_tokens=False)["input_ids"]
    assert second == greedy(opened, ids, 4)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
    with pytest.raises(DataError, match="more than the model can read"):
        list(conversation.answer("x" * 5000))
    assert len(conversation.messages) == 4


def test_a_reply_comes_in_pieces_and_counts_its_tokens(untuned: Opened) -> None:
    prompt = untuned.prompt
    ids = prompt.encode_messages([{"role": "user", "content": "hi"}])
    reply = Reply(untuned.loaded, prompt.tokenizer, ids, prompt.stop_ids, Sampling(40))
    pieces = list(reply)
    assert "".join(pieces) == greedy(untuned, ids, 40)
    assert len(pieces) > 3
    assert (reply.tokens, reply.finish_reason) == (40, "length")

    whole = "".join(pieces)
    stop = whole[12:15]
    reply = Reply(untuned.loaded, prompt.tokenizer, ids, prompt.stop_ids, Sampling(40, stop=(stop, "never there")))
    assert "".join(reply) == whole[: whole.index(stop)]
    assert reply.finish_reason == "stop" and reply.tokens < 40

    sampled = [
        "".join(Reply(untuned.loaded, prompt.tokenizer, ids, prompt.stop_ids, Sampling(20, 1.5, seed=k)))
        for k in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_reply_can_be_ended_and_its_error_comes_where_it_is_read(untuned: Opened) -> None:
    prompt = untuned.prompt
    reply = Reply(untuned.loaded, prompt.tokenizer, [1, 2, 3], prompt.stop_ids, Sampling(3000))
    pieces = iter(reply)
    next(pieces)
    pieces.close()
    assert not reply._thread.is_alive() and reply.tokens < 1000
    broken = Reply(untuned.loaded, prompt.tokenizer, [10**6], prompt.stop_ids, Sampling(3))
    with pytest.raises(IndexError):
        list(broken)
    assert torch.is_grad_enabled()


def test_a_reply_longer_than_the_model_reads_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="below 4096"):
        open_model(ChatConfig(run=str(run), accelerator="cpu", max_new_tokens=4096))


# ---------------------------------------------------------------------------------------- the command, in a process


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "cyberlm.chat", *arguments, "accelerator=cpu"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=folder, env=environment, text=True, **pipes)


def test_lines_through_a_pipe_are_answered_until_quit(run: Path, tmp_path: Path, opened: Opened) -> None:
    lines = ["hello", "Which port? | 80 | 443", "only | one", "/help", "", "/new", "/quit", "never asked"]
    said, told = started(tmp_path, f"run={run}", "max_new_tokens=4").communicate("\n".join(lines), timeout=120)
    conversation = Conversation(opened, ChatConfig(max_new_tokens=4))
    expected = ["".join(conversation.answer(line)) for line in lines[:2]]
    assert said == f"{expected[0]}\n{expected[1]}\n\n"
    assert told.startswith("run answers.\n") and "1 options" in told and "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_a_reply_and_the_end_of_input_the_chat(tmp_path: Path) -> None:
    process = started(tmp_path, "model=tiny_random", "max_new_tokens=4000")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("hello\n")
    process.stdin.flush()
    assert process.stdout.read(1)  # the reply has begun
    process.send_signal(signal.SIGINT)
    said, told = process.communicate("/quit\n", timeout=60)
    assert process.returncode == 0 and "Traceback" not in told
    assert said.endswith("\n") and len(said) < 3500


def test_mistakes_are_one_screen(tmp_path: Path) -> None:
    for arguments, words in (
        ([], "neither run nor model is given"),
        (["model=tiny_random", "run=."], "run=. is not a run's folder"),
        (["model=tiny_random", "temperature=3"], "temperature=3"),
        (["modl=tiny_random"], "there is no key 'modl'. Did you mean 'model'?"),
    ):
        said, told = started(tmp_path, *arguments).communicate("", timeout=60)
        assert said == "" and "Traceback" not in told
        assert words in told
