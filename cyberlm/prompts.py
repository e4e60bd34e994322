"""Where a prompt is rendered, tokenised, and given its fingerprint. Nothing else builds a prompt.

A prompt is rendered together with its answer and tokenised once; the answer's tokens are what stands behind the
prompt's. So a letter's token is found where it really stands ("A" and " A" differ), never guessed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from cyberlm.config import PromptConfig, Protocol
from cyberlm.config.schema import PromptStyle
from cyberlm.errors import ConfigError, DataError, ModelError, Problem
from cyberlm.records import LETTERS, Question

TEMPLATE_DATE = "26 Jul 2024"
"""Some chat templates print today's date unless they are given one: a prompt must not change overnight."""

PROBE = Question("probe", "Which port does HTTPS use by default?", ("80", "443", "22", "8443"), 1)


@dataclass(frozen=True)
class EncodedQuestion:
    """One question as token ids.

    Attributes:
        prompt_ids: Everything before the answer, with exactly one beginning-of-sequence token where the model has one.
        option_ids: Answer tokens of each option, end of turn left out.
        option_chars: Characters of each option's answer.
        gold: Index of the right option.
    """

    prompt_ids: tuple[int, ...]
    option_ids: tuple[tuple[int, ...], ...]
    option_chars: tuple[int, ...]
    gold: int


class Prompt:
    """Renders and tokenises questions for one tokenizer.

    Args:
        config: Templates and protocol.
        tokenizer: With its chat template, where it has one.

    Attributes:
        end_ids: Tokens that close an answer: the end of turn of the chat template, or the end-of-sequence token.
        stop_ids: Token ids at which generation stops.

    Raises:
        ConfigError: If prompt.style=chat and the model has no chat template.
        ModelError: If the tokenizer has no token that can close an answer.
    """

    def __init__(self, config: PromptConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config = config
        self.tokenizer = tokenizer
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if config.style is PromptStyle.chat and not has_template:
            raise ConfigError(
                "This model has no chat template:",
                [Problem("prompt.style=chat", "auto or plain, or an instruction-tuned model", "prompt.style=auto")],
            )
        self.chat = has_template and config.style is not PromptStyle.plain
        self.end_ids = self._find_end()
        eos = tokenizer.eos_token_id
        self.stop_ids = tuple(dict.fromkeys([self.end_ids[-1], *([eos] if eos is not None else [])]))

    # ------------------------------------------------------------------------------------------------- text

    def answer_text(self, question: Question, option: int) -> str:
        """What the model should answer if `option` is right: its letter, or its text."""
        return LETTERS[option] if self.config.protocol is Protocol.letter else question.options[option]

    def reference(self, question: Question) -> str:
        """The right answer, which ROUGE compares with."""
        return self.answer_text(question, question.gold)

    def render(self, question: Question) -> str:
        """The prompt as text, up to where the answer starts."""
        return self._render(question)

    def user_message(self, question: Question) -> str:
        lines = (
            self.config.option.format(letter=letter, text=text)
            for letter, text in zip(LETTERS, question.options, strict=False)
        )
        values = {"question": question.question}
        if self.config.show_options:
            values["options"] = "\n".join(lines)
        return self.config.question.format(**values)

    def _render(self, question: Question) -> str:
        return self.render_messages([{"role": "user", "content": self.user_message(question)}])

    def render_messages(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation as text, up to where the next answer starts.

        Args:
            messages: Each with a role and a content; the system message is put first unless they begin with their own.
        """
        if self.config.system and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.config.system}, *messages]
        if self.chat:
            return self._template(list(messages), add_generation_prompt=True)
        return "\n\n".join(message["content"] for message in messages) + f"\n{self.config.plain_cue}"

    def _template(self, messages: list[dict[str, str]], **options: Any) -> str:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, date_string=TEMPLATE_DATE, **options)
        assert isinstance(text, str)
        return text

    def _joined(self, prompt: str, answer: str) -> str:
        return f"{prompt}{answer}" if self.chat else f"{prompt} {answer}"

    # ------------------------------------------------------------------------------------------------ tokens

    def encode(self, questions: Sequence[Question]) -> list[EncodedQuestion]:
        """Tokenises questions, all in one call.

        Raises:
            DataError: If a tokenizer merges the end of a prompt with the start of its answer.
            ModelError: If the letter protocol meets a letter of more than one token.
        """
        texts: list[str] = []
        for question in questions:
            prompt = self._render(question)
            texts.append(prompt)
            texts += [self._joined(prompt, self.answer_text(question, k)) for k in range(len(question.options))]
        rows = iter(self._ids(texts) if texts else [])
        encoded = []
        for question in questions:
            prompt_ids = next(rows)
            options = tuple(self._behind(prompt_ids, next(rows), question) for _ in question.options)
            if self.config.protocol is Protocol.letter and any(len(ids) != 1 for ids in options):
                raise ModelError(
                    "The letter protocol needs letters of one token each, and this tokenizer splits them:",
                    [Problem(f"{question.id}: {options}", fix="prompt=text")],
                )
            chars = tuple(len(self.answer_text(question, k)) for k in range(len(options)))
            encoded.append(EncodedQuestion(tuple(prompt_ids), options, chars, question.gold))
        return encoded

    def encode_text(self, rendered: str) -> list[int]:
        """Token ids of a rendered prompt."""
        return self._ids([rendered])[0]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids; a chat template already holds its special tokens, a plain prompt gets one BOS."""
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        if not self.chat and bos is not None and self.adds_bos():
            rows = [[bos, *row] for row in rows]
        return rows

    def adds_bos(self) -> bool:
        """Whether the tokenizer itself puts a beginning-of-sequence token before a text."""
        return self.tokenizer("x")["input_ids"][:1] == [self.tokenizer.bos_token_id]

    def _behind(self, prompt_ids: list[int], whole: list[int], question: Question) -> tuple[int, ...]:
        cut = len(prompt_ids)
        if whole[:cut] != prompt_ids or len(whole) == cut:
            raise DataError(
                "The answer's tokens cannot be told from the prompt's:",
                [
                    Problem(
                        f"{question.id}: the tokenizer merges the end of the prompt with the start of the answer",
                        fix="another prompt.plain_cue, or prompt.style=chat",
                    )
                ],
            )
        return tuple(whole[cut:])

    def _find_end(self) -> tuple[int, ...]:
        """Tokens that the chat template puts behind an answer, up to its first special token."""
        eos = self.tokenizer.eos_token_id
        if self.chat:
            answer = "443"
            user = {"role": "user", "content": PROBE.question}
            whole = self._template([user, {"role": "assistant", "content": answer}])
            tail = whole[whole.rindex(answer) + len(answer) :]
            ids = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
            special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
            for k, token in enumerate(ids):
                if token in special:
                    return tuple(ids[: k + 1])
        if eos is None:
            raise ModelError("This tokenizer has no end-of-sequence token: an answer could not be ended.")
        return (eos,)

    def fingerprint(self) -> str:
        """SHA-256 (first 16 hex digits) over the templates and what this tokenizer makes of them.

        Two tokenizers that give the same ids have the same fingerprint, whatever files they were read from.
        """
        encoded = self.encode([PROBE])[0]
        settings = {k: v.value if hasattr(v, "value") else v for k, v in asdict(self.config).items() if k != "name"}
        text = json.dumps(
            [settings, self._render(PROBE), encoded.prompt_ids, encoded.option_ids, self.end_ids, len(self.tokenizer)],
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_hash(rendered: str) -> str:
    """SHA-256 (first 16 hex digits) of a rendered prompt."""
    return hashlib.sha256(rendered.encode()).hexdigest()[:16]
