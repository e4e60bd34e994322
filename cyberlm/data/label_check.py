"""Checks before the first step what each training example trains on, and shows one.

It looks at the batches that the loss gets, not at how they are made, so that a wrong collator, chat template or
tokenizer is found, whichever it is.
"""

import functools
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from rich.text import Text

from cyberlm.config.schema import Protocol
from cyberlm.data.batches import AnswerBatch, AnswerCollator
from cyberlm.runtime import progress
from cyberlm.runtime.errors import DataError, Problem
from cyberlm.runtime.progress import say
from cyberlm.tasks.chat_template import PROBE
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.tasks.task import Example

CHECKED_AT_ONCE = 256
NAMED = 3
"""Examples that are named for each broken rule; the rest are counted."""
MAX_SHOWN = 2000
"""Characters of a prompt that are shown; of a longer one, its end."""

Collate = Callable[[tuple[list[EncodedQuestion], int]], AnswerBatch]


@dataclass
class _Row:
    """One row of a batch, as the loss sees it.

    Attributes:
        inputs: Token ids without padding.
        places: Positions whose next token is trained on; from `len(inputs)` on, they are padding.
        labels: These tokens.
    """

    inputs: list[int]
    places: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


BOS = Problem(
    "not exactly one beginning-of-sequence token", "one, from the chat template or the tokenizer", "prompt.style=plain"
)
END = Problem("the end of turn is not trained on")
END_INSIDE = Problem(
    "an end of turn is inside the answer", "a tokenizer that gives text no special tokens", "prompt=letter"
)
PADDING = Problem("padding is trained on")
NO_LABEL = Problem("no token of the answer is trained on")
CUT = Problem("the answer is cut or in another place")
LETTER = Problem("a letter is not one token of its own", "a tokenizer with a token for each letter", "prompt=text")
DECODED = Problem(
    "the labels do not read as the right answer",
    "a tokenizer that gives every text back",
    "another model, or take these characters out",
)


def lint_labels(
    questions: Sequence[Example], encoded: Sequence[EncodedQuestion], prompt: Prompt, collate: Collate | None = None
) -> None:
    """Checks every training example, and shows the first one.

    Args:
        collate: Makes the batches; that of training unless a test brings its own.

    Raises:
        DataError: With each broken rule, how many examples break it, and the first of them.
    """
    collate = collate or AnswerCollator(prompt.end_ids, share_prefix=True)
    rules = _Rules(prompt)
    broken: dict[Problem, list[str]] = defaultdict(list)
    shown: _Row | None = None
    for start in range(0, len(questions), CHECKED_AT_ONCE):
        rows = slice(start, start + CHECKED_AT_ONCE)
        examples = _examples(collate((list(encoded[rows]), 1)))
        shown = shown or examples[0]
        for question, item, example in zip(questions[rows], encoded[rows], examples, strict=True):
            for rule in rules.broken(question, item, example):
                broken[rule].append(question.id)
    if broken:
        more = {rule: ", ..." if len(ids) > NAMED else "" for rule, ids in broken.items()}
        raise DataError(
            f"Of {len(questions)} training examples, some would teach what is not meant:",
            [
                replace(rule, what=f"{rule.what}: {len(ids)} examples, {', '.join(ids[:NAMED])}{more[rule]}")
                for rule, ids in broken.items()
            ],
            "Nothing was trained. docs/data.md says what each rule is for.",
        )
    if shown is not None:
        _show(shown, prompt)


def _examples(batch: AnswerBatch) -> list[_Row]:
    """The rows of a batch, apart again."""
    width, prefix = batch.input_ids.shape[1], batch.prefix_ids.tolist()
    lengths = batch.attention_mask.sum(1).tolist()
    rows = [_Row(prefix + ids[:length]) for ids, length in zip(batch.input_ids.tolist(), lengths, strict=True)]
    for place, target in zip(batch.answer_index.tolist(), batch.targets.tolist(), strict=True):
        row, column = divmod(place, width)
        rows[row].places.append(len(prefix) + column)
        rows[row].labels.append(target)
    return rows


class _Rules:
    """Rules that hold for every example under one prompt."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.end = list(prompt.end_ids)
        self.stops = set(prompt.stop_ids)
        self.bos = prompt.tokenizer.bos_token_id
        self.bos_wanted = self._bos_wanted()
        self.read = functools.cache(lambda answer: _canonical(_decoded(prompt, answer)))

    def _bos_wanted(self, question: Example = PROBE) -> int:
        """One where the tokenizer puts one before a text; a template that opens each turn with it has its own count."""
        if self.bos is None:
            return 0
        bos = str(self.prompt.tokenizer.bos_token)
        own = [text for _, text in question.turns] or [self.prompt.task.prompt(question)]
        written = self.prompt.render(question).count(bos) - "".join([self.prompt.config.system, *own]).count(bos)
        return max(written, int(self.prompt.adds_bos()))

    def broken(self, question: Example, item: EncodedQuestion, example: _Row) -> Iterator[Problem]:
        whole = [*item.prompt_ids, *item.option_ids[question.gold], *self.end]
        trained = [place for first, end in item.turns for place in range(first, end + len(self.end))]
        answer = example.labels[len(trained) : -len(self.end)]
        trained += range(len(item.prompt_ids), len(whole))
        bos_wanted = self._bos_wanted(question) if question.turns else self.bos_wanted
        if self.bos is not None and example.inputs.count(self.bos) != bos_wanted:
            yield BOS
        if any(place >= len(example.inputs) for place in example.places):
            yield PADDING
        if example.labels[-len(self.end) :] != self.end:
            yield END
        if not answer:
            yield NO_LABEL
            return
        if not self.stops.isdisjoint(answer):
            yield END_INSIDE
        labels, places = [whole[place] for place in trained], [place - 1 for place in trained]
        if (example.inputs, example.labels, example.places) != (whole[:-1], labels, places):
            yield CUT
        one_token_each = set(map(len, item.option_ids)) == {1} and len({*item.option_ids}) == len(item.option_ids)
        if self.prompt.config.protocol is Protocol.letter and not one_token_each:
            yield LETTER
        answers = [*(item.prompt_ids[first:end] for first, end in item.turns), tuple(answer)]
        earlier = [text for role, text in question.turns if role == "assistant"]
        if list(map(self.read, answers)) != list(map(_canonical, [*earlier, self.prompt.task.target(question)])):
            yield DECODED


def _canonical(text: str) -> str:
    """Without the space that joins an answer to a plain prompt; some tokenizers compose accents (NFC)."""
    return unicodedata.normalize("NFC", text.strip())


def _decoded(prompt: Prompt, ids: Sequence[int]) -> str:
    return str(prompt.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


# ------------------------------------------------------------------------------------------------- on the terminal


def _show(example: _Row, prompt: Prompt) -> None:
    """Prints a decoded example; what is trained on is coloured, or in [brackets] where there is no colour."""
    colour = progress.console.is_terminal and not progress.console.no_color
    say(f"First training example; what is trained on is {'coloured' if colour else 'in [brackets]'}:")
    ids, trained = [*example.inputs, example.labels[-1]], {place + 1 for place in example.places}
    text = Text()
    for is_trained, places in groupby(range(len(ids)), key=trained.__contains__):
        part = visible(_decoded(prompt, [ids[place] for place in places]))
        if is_trained:
            text.append(part if colour else f"[{part}]", style="bold black on green" if colour else "")
        else:
            left_out = f"({len(part) - MAX_SHOWN} characters) ... " if len(part) > MAX_SHOWN else ""
            text.append(f"{left_out}{part[-MAX_SHOWN:]}", style="dim" if colour else "")
    say(text)


def visible(text: str) -> str:
    """The text with every character that could steer a terminal, or hide on it, written as an escape."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )
