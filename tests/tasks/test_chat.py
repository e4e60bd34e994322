"""Conversations: three shapes of files, the places of the assistant's turns, the loss on them, and their score."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from support import config_of, evaluation_of, short_questions, tiny, train_tiny
from test_prompts import ALTERNATING, LLAMA_2, REASONING, templated

from cyberlm.config.schema import OnBadRow, PromptConfig, Protocol
from cyberlm.data.batches import AnswerCollator
from cyberlm.data.label_check import lint_labels
from cyberlm.data.readers import read_questions
from cyberlm.evaluation.inference import predict
from cyberlm.evaluation.results import read_results
from cyberlm.models.tiny import CHAT_TEMPLATE, tiny_tokenizer
from cyberlm.runs.evaluate import evaluate
from cyberlm.runtime.errors import ConfigError, DataError, ModelError
from cyberlm.tasks.chat import Chat
from cyberlm.tasks.prompts import Prompt
from cyberlm.tasks.task import Example

PROMPT = PromptConfig(name="text", protocol=Protocol.text, question="{question}", system="")
CHAT = Chat(PROMPT)
SAID = [
    ("system", "Be brief."),
    ("user", "What is\n  nmap?"),
    ("assistant", "A port scanner."),
    ("user", "And hydra?"),
    ("assistant", "A login cracker:\n\n- fast\n- loud"),
]
MESSAGES = {"messages": [{"role": role, "content": text} for role, text in SAID]}
FROM = {"system": "system", "user": "human", "assistant": "gpt"}
SHAREGPT = {"conversations": [{"from": FROM[role], "value": text} for role, text in SAID]}
EXAMPLE = Example("c:1", "What is\n  nmap?\n\nAnd hydra?", (SAID[-1][1],), 0, turns=tuple(SAID[:-1]))


def read(row: dict[str, object]) -> Example:
    return CHAT.read(row, "c:1")


@pytest.mark.parametrize("row", [MESSAGES, SHAREGPT])
def test_a_conversation_keeps_its_messages_and_their_white_space(row: dict[str, object], tmp_path: Path) -> None:
    """The column of a file that holds one is proposed."""
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    (found,) = read_questions(tmp_path / "c.jsonl", "c", OnBadRow.error, CHAT).questions
    assert found == EXAMPLE and found.hash != Example("c:1", EXAMPLE.question, EXAMPLE.options, 0).hash
    ((shape, messages),) = row.items()
    (tmp_path / "c.jsonl").write_text(json.dumps({"chat": messages}))
    with pytest.raises(DataError) as caught:
        read_questions(tmp_path / "c.jsonl", "c", OnBadRow.error, CHAT)
    assert f"These overrides read 1 of its 1 rows:\n    data.columns.{shape}=chat" in caught.value.screen()


def test_other_shapes_of_a_conversation() -> None:
    """Alpaca's columns are one turn; messages behind the last answer are left out and noted."""
    row = {"instruction": "Name the port.", "input": "SSH", "output": " 22 \n"}
    assert read(row) == Example("c:1", "Name the port.\n\nSSH", ("22",), 0, turns=(("user", "Name the port.\n\nSSH"),))
    assert read(row | {"input": ""}).turns == (("user", "Name the port."),)
    thanks = read({"messages": [*MESSAGES["messages"], {"role": "user", "content": "Thanks"}]})
    assert thanks.turns == EXAMPLE.turns and thanks.notes == ("messages behind the last answer left out",)


def test_what_is_no_conversation_is_told() -> None:
    question, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}
    for row, told in (
        ({"text": "x"}, "it has the fields text; allowed: one of messages, conversations, or instruction and output"),
        ({"messages": [], "conversations": []}, "it has the fields messages, conversations"),
        ({"messages": []}, "its roles are none"),
        ({"messages": [question]}, "its roles are user; allowed: user, assistant and so on"),
        ({"messages": [answer]}, "its roles are assistant"),
        ({"messages": [question, question, answer]}, "user, user"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role of message 1 is 'tool'; allowed: system, user"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "content of message 1 is ['x']; allowed: a text"),
        ({"conversations": [{"from": "bing", "value": "x"}]}, "from of message 1 is 'bing'; allowed: system, human"),
        ({"messages": "x"}, 'messages is no list of {"role": ..., "content": ...}'),
        ({"instruction": "x", "output": ""}, "output is ''; allowed: a text"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            read(row)


BOS_EACH_TURN = LLAMA_2.removeprefix("{{ bos_token }}").replace("[INST] ", "{{ bos_token }}[INST] ")


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, ALTERNATING, LLAMA_2, BOS_EACH_TURN])
def test_every_answer_of_the_assistant_is_trained_on_and_nothing_else(template: str) -> None:
    turns = tuple(SAID[1:-1]) if template is not CHAT_TEMPLATE else EXAMPLE.turns
    example = Example("c:1", EXAMPLE.question, EXAMPLE.options, 0, turns=turns)
    prompt = Prompt(PROMPT, templated(template), CHAT)
    (encoded,) = prompt.encode([example])
    batch = AnswerCollator(prompt.end_ids, share_prefix=True)(([encoded] * 2, 1))
    end = prompt.tokenizer.decode(prompt.end_ids)
    trained = prompt.tokenizer.decode(batch.targets[: len(batch.targets) // 2])
    joined = f"{end}{prompt.space}".join([SAID[2][1], SAID[4][1]])
    assert trained.strip() == f"{joined}{end}".strip()
    whole = torch.cat([batch.prefix_ids, batch.input_ids[0]])
    assert torch.equal(whole, torch.tensor([*encoded.prompt_ids, *encoded.option_ids[0], *prompt.end_ids][:-1]))
    places = batch.answer_index[: len(batch.targets) // 2] + len(batch.prefix_ids)
    assert torch.equal(whole[places[:-1] + 1], batch.targets[: len(places) - 1]), "each place predicts its target"
    lint_labels([example], [encoded], prompt)


def test_a_template_that_changes_earlier_messages_or_is_not_there_is_refused() -> None:
    prompt = Prompt(PROMPT, templated(REASONING), CHAT)
    assert prompt.encode([Example("c:1", "x", ("y",), 0, turns=(("user", "x"),))]), "one turn is as it was asked for"
    with pytest.raises(ModelError) as caught:
        prompt.encode([EXAMPLE])
    assert "c:1: message 3 is not written as an answer to those before it" in caught.value.screen()
    with pytest.raises(ConfigError, match="Conversations need a chat template"):
        Prompt(PROMPT, templated(None), CHAT).encode([EXAMPLE])


def test_the_score_of_a_conversation_is_the_likelihood_of_all_its_answers() -> None:
    config = config_of("data=sample", "evaluation.generate=false")
    loaded, _ = tiny(config)
    prompt = Prompt(PROMPT, tiny_tokenizer(), CHAT)
    (encoded,) = prompt.encode([EXAMPLE])
    (found,) = predict(loaded, prompt, [EXAMPLE], [encoded], config.evaluation, 4096, "tiny")
    ids = torch.tensor([[*encoded.prompt_ids, *encoded.option_ids[0]]])
    with torch.no_grad():
        log_probs = torch.log_softmax(loaded.model(input_ids=ids).logits[0].double(), dim=-1)
    spans = [*encoded.turns, (len(encoded.prompt_ids), ids.shape[1])]
    places = [place for first, end in spans for place in range(first, end)]
    expected = sum(log_probs[place - 1, ids[0, place]].item() for place in places)
    assert found.option_logprobs == pytest.approx((expected,), rel=1e-5)
    assert found.option_tokens == (len(places),)
    assert found.gold_nll == pytest.approx(-expected / len(places), rel=1e-5)


def test_a_run_on_conversations_is_scored_and_scored_again(tmp_path: Path) -> None:
    rows = []
    for first, second in itertools.pairwise(short_questions(60)):
        said = [first.question, first.answer, f"And {second.question}", second.answer]
        roles = ["user", "assistant"] * 2
        rows.append({"chat": [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]})
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chat = ("task=chat", "prompt=text", "data=file", f"data.path={tmp_path}/c.jsonl", "data.columns.messages=chat")
    run = train_tiny(tmp_path / "run", *chat, "evaluation=default", "evaluation.max_new_tokens=4")
    metrics = read_results(run).metrics
    assert metrics["tuned"]["gold_nll"].value < metrics["base"]["gold_nll"].value
    assert "rougeL" in metrics["tuned"] and metrics["tuned"]["gold_nll"].n == 12
    evaluate(evaluation_of(f"run={run}", "evaluation.max_new_tokens=4"), tmp_path / "again")
    assert read_results(tmp_path / "again").metrics["tuned"]["gold_nll"] == metrics["tuned"]["gold_nll"]
