"""Prompts: rendered, tokenised, and given their fingerprint. No other module builds a prompt.

A prompt is rendered together with its answer and tokenised once; the answer's tokens are those behind the prompt's. So
a letter's token is the one in its place ("A" and " A" differ), never a guess.

Control tokens come from the chat template alone: where a question, an option or a message holds the text of one, it is
tokenised as text.
"""

import functools
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cyberlm.config.schema import PromptConfig, PromptStyle, Protocol
from cyberlm.runtime.errors import ConfigError, DataError, ModelError, Problem
from cyberlm.runtime.progress import say_once
from cyberlm.tasks.chat_template import PROBE, ChatTemplate
from cyberlm.tasks.multiple_choice import MultipleChoice
from cyberlm.tasks.task import Example, Task, short_hash

BREAK = "\ufdd0"
"""Noncharacter put inside the text of a control token: its two sides are tokenised apart."""


@dataclass(frozen=True, slots=True)
class EncodedQuestion:
    """One question as token ids.

    Attributes:
        prompt_ids: Everything before the answer, with exactly one beginning-of-sequence token where the model has one.
        option_ids: Answer tokens of each option, end of turn left out.
        option_chars: Characters of each option's answer.
        turns: Places in `prompt_ids` of a conversation's earlier answers: of the first token, and behind the last one,
            end of turn left out.
    """

    prompt_ids: tuple[int, ...]
    option_ids: tuple[tuple[int, ...], ...]
    option_chars: tuple[int, ...]
    gold: int
    turns: tuple[tuple[int, int], ...] = ()

    def each_turn(self) -> Iterator["EncodedQuestion"]:
        """Yields a question for each answer of a conversation, behind what comes before it; the last one last."""
        for first, end in self.turns:
            yield EncodedQuestion(self.prompt_ids[:first], (self.prompt_ids[first:end],), self.option_chars, 0)
        yield replace(self, turns=())


class Prompt:
    """Renders and tokenises questions for one tokenizer.

    Args:
        tokenizer: With its chat template, where it has one.
        task: What is asked; multiple choice unless given.

    Attributes:
        template: The chat template, or None for a plain prompt.
        space: Spaces before an answer, tokenised with it.
        end_ids: Tokens that close an answer: the end of turn of the chat template, or the end-of-sequence token.
        stop_ids: Token ids at which generation stops.

    Raises:
        ConfigError: If prompt.style=chat and the model has no chat template.
        ModelError: If the chat template cannot be used, or the tokenizer has no token that can close an answer.
    """

    def __init__(self, config: PromptConfig, tokenizer: PreTrainedTokenizerBase, task: Task | None = None) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.task = task or MultipleChoice(config)
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if config.style is PromptStyle.chat and not has_template:
            raise ConfigError(
                "This model has no chat template:",
                [Problem("prompt.style=chat", "auto or plain, or an instruction-tuned model", "prompt.style=auto")],
            )
        self.template = ChatTemplate(tokenizer) if has_template and config.style is not PromptStyle.plain else None
        self.space = self.template.space if self.template else " "
        self._control_token = _control_pattern(tokenizer)
        self.end_ids = self._find_end()
        eos = tokenizer.eos_token_id
        self.stop_ids = tuple(dict.fromkeys([self.end_ids[-1], *([eos] if eos is not None else [])]))
        if self.template and config.system and not self.template.takes_system:
            say_once("The chat template has no system role: prompt.system is put before the first user message.")
        if self.template and any(map(self._control_token.search, (config.system, config.question, config.option))):
            say_once(
                "The prompt's own text looks like control tokens: encoded as plain text (not with prompt.style=plain)"
            )

    # ------------------------------------------------------------------------------------------------- text

    def render(self, question: Example) -> str:
        """The prompt as text, up to where the answer starts."""
        return self._render(question).replace(BREAK, "")

    def _render(self, question: Example) -> str:
        return self._render_messages(self._messages(question))

    def _messages(self, question: Example) -> list[dict[str, str]]:
        if question.turns and not self.template:
            problem = Problem("a plain prompt has no roles", "a model with a chat template, and its style")
            raise ConfigError("Conversations need a chat template:", [problem])
        turns = question.turns or [("user", self.task.prompt(question))]
        return [{"role": role, "content": text} for role, text in turns]

    def _render_messages(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation up to where the next answer starts; it begins with the prompt's system text or its own."""
        if self.config.system and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.config.system}, *messages]
        if self.template:
            return self.template.render([{**item, "content": self._as_text(item["content"])} for item in messages])
        return "\n\n".join(message["content"] for message in messages) + f"\n{self.config.plain_cue}"

    def _as_text(self, text: str) -> str:
        """The text with a `BREAK` in each control token."""
        return self._control_token.sub(rf"\g<0>{BREAK}", text)

    def answers(self, question: Example) -> Sequence[str]:
        """List the answers whose likelihood is measured, the right one at `question.gold`."""
        candidates = self.task.candidates(question)
        return (self.task.target(question),) if candidates is None else candidates

    def holds_control_token(self, question: Example) -> bool:
        """Test a question, its options and the messages before it for the text of a control token."""
        texts = (question.question, *question.options, *(text for _, text in question.turns))
        return any(map(self._control_token.search, texts))

    # ------------------------------------------------------------------------------------------------ tokens

    def encode(self, questions: Sequence[Example]) -> list[EncodedQuestion]:
        """Tokenises questions, all in one call.

        Raises:
            DataError: If a tokenizer merges the end of a prompt with the start of its answer.
            ModelError: If the letter protocol meets a letter of more than one token.
        """
        texts: list[str] = []
        for question in questions:
            as_text = question
            if self.holds_control_token(question):
                options = tuple(map(self._as_text, question.options))
                as_text = replace(question, question=self._as_text(question.question), options=options)
            prompt = self._render(as_text)
            answers = map(self._as_text, self.answers(question))
            texts += [prompt, *(f"{prompt}{self.space}{answer}" for answer in answers)]
        rows = iter(self._ids(texts) if texts else [])
        encoded = []
        for question in questions:
            prompt_ids, chars = next(rows), tuple(map(len, self.answers(question)))
            answer_ids = tuple(self._behind(prompt_ids, next(rows), question) for _ in chars)
            if self.config.protocol is Protocol.letter and any(len(ids) != 1 for ids in answer_ids):
                raise ModelError(
                    "The letter protocol needs letters of one token each, and this tokenizer splits them:",
                    [Problem(f"{question.id}: {answer_ids}", fix="prompt=text")],
                )
            turns = self._earlier_answers(question, prompt_ids)
            encoded.append(EncodedQuestion(tuple(prompt_ids), answer_ids, chars, question.gold, turns))
        return encoded

    def _earlier_answers(self, question: Example, prompt_ids: list[int]) -> tuple[tuple[int, int], ...]:
        """Places of a conversation's earlier answers in its prompt: each as the model would have been asked for it.

        Raises:
            ModelError: If the template writes an earlier answer otherwise than it asks for one, so that what would be
                trained on never follows what the model is given.
        """
        messages, places = self._messages(question) if question.turns else [], []
        for k, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render_messages(messages[:k])
            before, whole = self._ids([prompt, f"{prompt}{self.space}{self._as_text(message['content'])}"])
            self._behind(before, whole, question)
            if prompt_ids[: len(whole) + len(self.end_ids)] != [*whole, *self.end_ids]:
                what = f"{question.id}: message {k + 1} is not written as an answer to those before it"
                problem = Problem(what, "a template that adds a message and changes none; or conversations of one turn")
                raise ModelError("The model's chat template changes earlier messages of a conversation:", [problem])
            places.append((len(before), len(whole)))
        return tuple(places)

    def encode_messages(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the next answer starts.

        Args:
            messages: Each with a role and a content; the system message is put first unless they begin with their own.
        """
        as_text = [{**message, "content": self._as_text(message["content"])} for message in messages]
        return self._ids([self._render_messages(as_text)])[0]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids; a chat template already holds its special tokens, a plain prompt gets one BOS."""
        whole = [text for text in texts if BREAK not in text]
        tokenised = iter(self.tokenizer(whole, add_special_tokens=False)["input_ids"] if whole else [])
        rows = [self._ids_in_parts(text) if BREAK in text else next(tokenised) for text in texts]
        bos = self.tokenizer.bos_token_id
        if not self.template and bos is not None and self.adds_bos():
            rows = [[bos, *row] for row in rows]
        return rows

    def _ids_in_parts(self, text: str) -> list[int]:
        """Token ids of the parts between breaks, one after the other."""
        first, *parts = text.split(BREAK)
        ids = list(self.tokenizer(first, add_special_tokens=False)["input_ids"])
        for part in parts:
            ids += self._ids_inside(part)
        return ids

    def _ids_inside(self, part: str) -> list[int]:
        """Token ids of a part that does not begin its text: SentencePiece puts a space before what does."""
        for before in ("\n", ";", "0"):
            lead, both = self.tokenizer([before, before + part], add_special_tokens=False)["input_ids"]
            if lead and both[: len(lead)] == lead:
                return list(both[len(lead) :])
        return list(self.tokenizer(part, add_special_tokens=False)["input_ids"])

    def adds_bos(self) -> bool:
        """Test for a tokenizer that puts a beginning-of-sequence token before a text itself."""
        return self.tokenizer("x")["input_ids"][:1] == [self.tokenizer.bos_token_id]

    def _behind(self, prompt_ids: list[int], whole: list[int], question: Example) -> tuple[int, ...]:
        cut = len(prompt_ids)
        if whole[:cut] != prompt_ids or len(whole) == cut:
            what = f"{question.id}: the tokenizer merges the end of the prompt with the start of the answer"
            problem = Problem(what, fix="another prompt.plain_cue, or prompt.style=chat")
            raise DataError("The answer's tokens cannot be separated from the prompt's:", [problem])
        return tuple(whole[cut:])

    def _find_end(self) -> tuple[int, ...]:
        """Tokens that the chat template puts behind an answer, up to its first special token."""
        eos = self.tokenizer.eos_token_id
        if self.template:
            ids = self.tokenizer(self.template.ending, add_special_tokens=False)["input_ids"]
            special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
            for k, token in enumerate(ids):
                if token in special:
                    return tuple(ids[: k + 1])
        if eos is None:
            raise ModelError("This tokenizer has no end-of-sequence token: an answer could not be ended.")
        return (eos,)

    def fingerprint(self) -> str:
        """`short_hash` of the templates and what this tokenizer makes of one question."""
        encoded = self.encode([PROBE])[0]
        settings = {k: v.value if hasattr(v, "value") else v for k, v in asdict(self.config).items() if k != "name"}
        made = [self.render(PROBE), encoded.prompt_ids, encoded.option_ids, self.end_ids, len(self.tokenizer)]
        return short_hash(json.dumps([settings, *made], sort_keys=True))

    @functools.cached_property
    def tokenizer_hash(self) -> str:
        """`short_hash` of the whole tokenizer: vocabulary, merges, added tokens, chat template."""
        tokenizer = self.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            state = json.loads(backend.to_str())
            state.pop("padding"), state.pop("truncation")  # those of the last call
        else:
            with tempfile.TemporaryDirectory() as folder:
                files = tokenizer.save_vocabulary(folder)
                state = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
        added = {number: repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
        special = {name: token for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
        template = self.template.source if self.template else None
        return short_hash(json.dumps([state, added, special, template], sort_keys=True))

    def identity(self) -> dict[str, str]:
        """Hashes that are saved beside a tuned model, to recognise its prompt."""
        return {"fingerprint": self.fingerprint(), "tokenizer": self.tokenizer_hash}


def _control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches the first character of each control token: special tokens, and added ones that chat templates write."""
    template = str(getattr(tokenizer, "chat_template", None))
    tokens = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content in template and not token.content[0].isalnum())
    ]
    breakable = sorted(token for token in tokens if len(token.strip()) > 1)
    by_first = groupby(breakable, key=lambda token: token[0])  # thousands of alternatives are then tried at few places
    return re.compile(
        "|".join(
            f"{re.escape(first)}(?={'|'.join(re.escape(token[1:]) for token in group)})" for first, group in by_first
        )
        or "(?!)"
    )
