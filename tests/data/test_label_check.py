"""The label linter: each rule is broken once with a real tokenizer, and sound examples pass."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support import config_of, sample_questions
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from cyberlm.data.batches import AnswerBatch, AnswerCollator
from cyberlm.data.datamodule import encode_split
from cyberlm.data.label_check import lint_labels, visible
from cyberlm.data.splits import Split, read_manifest
from cyberlm.evaluation.results import read_results
from cyberlm.models.loading import load_tokenizer
from cyberlm.models.tiny import CHAT_TEMPLATE, SPECIAL, tiny_tokenizer
from cyberlm.runs.train import train
from cyberlm.runtime import progress
from cyberlm.runtime.errors import DataError
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.tasks.task import Example

QUESTIONS = tuple(
    Example(f"q:{k}", f"Which port is number {k}?", (f"port {k}", "none", "é and ☃", "all of them"), k % 4)
    for k in range(12)
)


def with_bos() -> PreTrainedTokenizerFast:
    """Adds a beginning-of-sequence token to every text, as Llama 3's tokenizer does."""
    tokenizer = tiny_tokenizer()
    bos = str(tokenizer.bos_token)
    special = [(bos, tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    return tokenizer


def prompt_of(tokenizer: PreTrainedTokenizerFast, *overrides: str) -> Prompt:
    return Prompt(config_of(*overrides).prompt, tokenizer)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    printed = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=printed, soft_wrap=True))
    return printed


def lint(prompt: Prompt, questions=QUESTIONS, collate=None, encoded: list[EncodedQuestion] | None = None) -> None:
    lint_labels(questions, prompt.encode(questions) if encoded is None else encoded, prompt, collate)


def smollm2() -> PreTrainedTokenizerFast:
    """Opens each turn with its beginning-of-sequence token."""
    return load_tokenizer(config_of("model=smollm2_135m").model)


@pytest.mark.parametrize("protocol", ["letter", "text"])
@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("make", [tiny_tokenizer, with_bos, smollm2])
def test_sound_examples_pass(make: Callable[[], PreTrainedTokenizerFast], style: str, protocol: str, shown) -> None:
    """Also where texts hold control tokens."""
    odd = replace(QUESTIONS[0], question="What is <|begin_of_text|>?", options=("a <|eot_id|> b", "c"))
    lint(prompt_of(make(), f"prompt={protocol}", f"prompt.style={style}"), (*QUESTIONS, odd, *sample_questions(60)))
    assert "[" in shown.getvalue()


def test_padding_may_be_the_end_of_turn_as_long_as_the_loss_leaves_it_out(shown) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<|eot_id|>"
    lint(prompt_of(tokenizer, "prompt=text"))


def lossy_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-case ASCII only: every capital letter becomes small, everything else one unknown token."""
    symbols = ["<unk>", *(symbol for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()) if symbol.isascii())]
    backend = Tokenizer(BPE({symbol: k for k, symbol in enumerate([*symbols, "Ġ", "Ċ"])}, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[5], unk_token="<unk>"
    )


def bos_twice(prompt: Prompt) -> None:
    """The classic: a template that writes one, and a tokenizer that adds another."""
    original = prompt._ids
    prompt._ids = lambda texts: [[prompt.tokenizer.bos_token_id, *row] for row in original(texts)]  # type: ignore


def no_bos(prompt: Prompt) -> None:
    prompt.tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    prompt.__init__(prompt.config, prompt.tokenizer)  # type: ignore[misc]


def altered(row: int, **changes: Callable[[EncodedQuestion, Prompt], object]):
    """Encoded questions of which one is changed."""

    def encoded(prompt: Prompt) -> dict[str, list[EncodedQuestion]]:
        rows = prompt.encode(QUESTIONS)
        rows[row] = replace(rows[row], **{name: change(rows[row], prompt) for name, change in changes.items()})
        return {"encoded": rows}

    return encoded


def collated(change: Callable[[AnswerBatch, Prompt], AnswerBatch]):
    """A collator whose batches are changed."""

    def collate(prompt: Prompt) -> dict[str, object]:
        ours = AnswerCollator(prompt.end_ids, share_prefix=False)
        return {"collate": lambda fetched: change(ours(fetched), prompt)}

    return collate


def kept(batch: AnswerBatch, rows: torch.Tensor) -> AnswerBatch:
    return batch._replace(answer_index=batch.answer_index[rows], targets=batch.targets[rows])


def with_padding_labelled(batch: AnswerBatch, prompt: Prompt) -> AnswerBatch:
    empty = (batch.attention_mask == 0).flatten().nonzero().flatten()
    padding = torch.full((len(empty),), prompt.tokenizer.pad_token_id)
    return batch._replace(
        answer_index=torch.cat([batch.answer_index, empty]), targets=torch.cat([batch.targets, padding])
    )


BOS, CUT = "not exactly one beginning-of-sequence token", "the answer is cut or in another place"
DECODED = "the labels do not read as the right answer"


second_bos = altered(2, prompt_ids=lambda item, prompt: (*item.prompt_ids, prompt.tokenizer.bos_token_id))
end_inside = altered(0, option_ids=lambda item, prompt: tuple((*ids, *prompt.end_ids) for ids in item.option_ids))
two_letters = altered(1, option_ids=lambda item, _: (item.option_ids[0] * 2, *item.option_ids[1:]))
wrong_answer = altered(4, gold=lambda *_: 2)
without_end = collated(lambda batch, prompt: kept(batch, batch.targets != prompt.end_ids[-1]))
end_alone = collated(lambda batch, prompt: kept(batch, batch.targets == prompt.end_ids[-1]))
first_cut = collated(lambda batch, _: kept(batch, slice(1, None)))
moved = collated(lambda batch, _: batch._replace(answer_index=batch.answer_index - 1))
padding = collated(with_padding_labelled)


@pytest.mark.parametrize(
    ("make", "protocol", "broken", "expected"),
    [
        (with_bos, "letter", bos_twice, [f"{BOS}: 12 examples, q:0, q:1, q:2, ..."]),
        (with_bos, "letter", no_bos, [f"{BOS}: 12"]),
        (with_bos, "letter", second_bos, [f"{BOS}: 1 examples, q:2"]),
        (with_bos, "text", end_inside, ["an end of turn is inside the answer: 1 examples, q:0", DECODED]),
        (tiny_tokenizer, "text", without_end, ["the end of turn is not trained on: 12 examples", CUT, DECODED]),
        (tiny_tokenizer, "text", padding, ["padding is trained on: 11", "the end of", "an end of", CUT, DECODED]),
        (tiny_tokenizer, "letter", end_alone, ["no token of the answer is trained on: 12"]),
        (tiny_tokenizer, "text", first_cut, [f"{CUT}: 1", f"{DECODED}: 1"]),
        (tiny_tokenizer, "text", moved, [f"{CUT}: 12"]),
        (tiny_tokenizer, "letter", two_letters, ["a letter is not one token of its own: 1 examples, q:1"]),
        (tiny_tokenizer, "letter", wrong_answer, ["the", f"{DECODED}: 1 examples, q:4"]),
        (lossy_tokenizer, "text", lambda prompt: None, [f"{DECODED}: 3 examples, q:2, q:6, q:10"]),
    ],
)
def test_each_rule_is_broken_once(make, protocol: str, broken, expected: list[str]) -> None:
    prompt = prompt_of(make(), f"prompt={protocol}")
    with pytest.raises(DataError) as caught:
        lint(prompt, **(broken(prompt) or {}))
    found = [problem.what for problem in caught.value.problems]
    assert len(found) == len(expected) and all(map(str.startswith, found, expected))


def test_the_example_marks_what_is_trained_on(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """In brackets, or by colours on a terminal."""
    prompt = prompt_of(tiny_tokenizer(), "prompt=letter", "prompt.system=")
    lint(prompt, QUESTIONS[:3])
    assert shown.getvalue() == (
        "First training example; what is trained on is in [brackets]:\n"
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        "Which port is number 0?\n\nA) port 0\nB) none\nC) é and ☃\nD) all of them\n\nAnswer with one letter."
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[A<|eot_id|>]\n"
    )
    terminal = Console(file=(printed := io.StringIO()), force_terminal=True, color_system="standard", soft_wrap=True)
    monkeypatch.setattr(progress, "console", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    lint(prompt, QUESTIONS[:3])
    assert printed.getvalue().endswith("\x1b[1;30;42mA<|eot_id|>\x1b[0m\n")
    assert "[A<|eot_id|>]" not in printed.getvalue()


def test_what_could_steer_a_terminal_is_shown_as_an_escape(shown: io.StringIO) -> None:
    nasty = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\x9b31m [bold]x[/bold] :smile:"
    question = replace(QUESTIONS[0], question=nasty, options=("\x1b[31mred", "c"))
    lint(prompt_of(tiny_tokenizer(), "prompt=text"), (question,))
    printed = shown.getvalue()
    assert "\x1b" not in printed and "\u202e" not in printed and "\x9b" not in printed
    assert r"\x1b]0;owned\x07\x1b[2J\u202egnp.exe\x9b31m [bold]x[/bold] :smile:" in printed
    assert r"[\x1b[31mred<|eot_id|>]" in printed
    assert visible("a\tb\r\n\ud800") == "a\\tb\\r\n\\ud800"


def test_long_questions_are_refused() -> None:
    short, long = (Example(f"q:{words}", "word " * words, ("a", "b"), 0) for words in (5, 90))
    sound = dict.fromkeys(("train", "validation", "test"), (short,))
    for policy, parts, hint in (
        ("error", {"train": (short, long)}, "data.on_long_prompt=skip"),
        ("skip", {"train": (long,)}, "data.on_long_prompt=skip"),  # nothing would be left to train on
        ("skip", {"validation": (long,)}, "Questions of the validation set are never left out"),
        ("skip", {"test": (long,)}, "Questions of the test set are never left out"),
    ):
        config = config_of("data.max_length=400", f"data.on_long_prompt={policy}")
        with pytest.raises(DataError, match=r"q:90: \d+ tokens") as caught:
            encode_split(Split(**sound | parts, sources=(), clusters=5), prompt_of(tiny_tokenizer()), config.data)
        assert hint in caught.value.hint


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # between libraries
def test_a_run_says_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path / "cache"))
    rows = [{"question": f"Port {k} or {k * 7}?", "options": [f"x{k}", "y"], "answer": "A"} for k in range(20)]
    short = "\n".join(map(json.dumps, rows))
    (tmp_path / "test.jsonl").write_text(short.replace("Port", "Which"))
    (tmp_path / "q.jsonl").write_text(f"{short}\n{json.dumps(rows[0] | {'question': 'long ' * 100})}\n")
    config = config_of(
        *("data=mcq", f"data.path={tmp_path / 'q.jsonl'}", f"data.test_path={tmp_path / 'test.jsonl'}"),
        *("data.max_length=300", "data.on_long_prompt=skip", "data.near_duplicate_jaccard=1", "data.seed=3"),
        *("prompt.system=", "evaluation.generate=false", "evaluation.base=false"),
    )
    train(config, tmp_path / "run")
    manifest = read_manifest(tmp_path / "run" / "split_manifest.json")
    (left_out,) = manifest["too_long"]
    assert left_out.startswith("q:21: ") and left_out.endswith(" tokens")
    assert read_results(tmp_path / "run").questions["train"] == len(manifest["parts"]["train"])
    assert "1 left out: too long (split_manifest.json lists them)" in capsys.readouterr().out
