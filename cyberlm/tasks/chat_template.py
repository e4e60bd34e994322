"""A tokenizer's chat template: a conversation as text, and what it writes around an answer."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from cyberlm.runtime.errors import ModelError, Problem
from cyberlm.tasks.task import Example

PROBE = Example("probe", "Which port does HTTPS use by default?", ("80", "443", "22", "8443"), 1)

TEMPLATE_DATE = datetime(2024, 7, 26)
"""Some chat templates print today's date: a prompt must not change overnight."""
DATE_CODES = ("-d", "-m", "-H", "-I", "-M", "-S", *"aAbBcdDeFgGHIjmMpPrRSTuUVwWxXyYzZ")
FROZEN_CLOCK = "".join(
    [
        "{% macro strftime_now(format) %}{{ format",
        *(f" | replace('%{code}', '{TEMPLATE_DATE.strftime(f'%{code}')}')" for code in DATE_CODES),
        " }}{% endmacro %}\n",
    ]
)
"""Put before a template that asks for the time, in place of the function that transformers gives it."""


class ChatTemplate:
    """A tokenizer's chat template, and what it writes around an answer.

    Attributes:
        timeless: The template with a fixed clock.
        takes_system: Whether it writes system messages; where not, they are put before the first user message.
        opening: Text between generation prompt and answer, a closed thought for example. It is part of the prompt.
        space: Spaces before an answer, tokenised with it.

    Raises:
        ModelError: If it cannot be rendered, leaves out texts, or answers do not follow its generation prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        try:
            self.source = tokenizer.get_chat_template()
        except ValueError as error:  # several named templates, none of them the default
            raise _template_error(error) from error
        self.timeless = FROZEN_CLOCK + self.source if "strftime_now" in self.source else self.source
        self.takes_system = self._writes_system()
        self.opening, self.space, self.ending = self._around_answer()

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation as text, up to where the next answer starts."""
        first, *others = messages
        if first["role"] == "system" and not self.takes_system and others and others[0]["role"] == "user":
            texts = filter(None, (first["content"], others[0]["content"]))
            messages = [{"role": "user", "content": "\n\n".join(texts)}, *others[1:]]
        return self._begin(messages) + self.opening

    def _begin(self, messages: Sequence[dict[str, str]]) -> str:
        """Up to the generation prompt, without spaces at its end: they are tokenised with what follows."""
        return self._write(messages, add_generation_prompt=True).rstrip(" ")

    def _write(self, messages: Sequence[dict[str, str]], **options: Any) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.timeless,
                tokenize=False,
                date_string=TEMPLATE_DATE.strftime("%d %b %Y"),
                enable_thinking=False,  # in Qwen3, SmolLM3 and GLM; `thinking` in DeepSeek and Granite
                thinking=False,
                **options,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise _template_error(error) from error
        assert isinstance(text, str)
        return text

    def _writes_system(self) -> bool:
        system = "Answer briefly."
        asked = [{"role": "system", "content": system}, {"role": "user", "content": PROBE.question}]
        try:
            return system in self._begin(asked)
        except ModelError:
            return False

    def _around_answer(self) -> tuple[str, str, str]:
        """Texts of a whole conversation between its generation prompt and the answer, and behind the answer."""
        asked, answer = [{"role": "user", "content": PROBE.question}], PROBE.answer
        prompt = self._begin(asked)
        whole = self._write([*asked, {"role": "assistant", "content": answer}])
        if PROBE.question not in prompt:
            raise _template_error("it leaves out the user's message")
        thought = None if whole.startswith(prompt) else re.search(r"<([\w:]+)>\s*$", prompt)
        head = prompt[: thought.start()] if thought else prompt
        between, found, ending = whole.removeprefix(head).partition(answer)
        if not (whole.startswith(head) and found):
            raise _template_error("in a conversation, answers do not follow its generation prompt")
        if thought:  # opened for the next answer, and left out of the conversation afterwards
            return ("\n" if prompt.endswith("\n") else "\n\n") + f"</{thought[1]}>\n\n", "", ending
        opening = between.rstrip(" ")
        return opening, between[len(opening) :], ending


def _template_error(message: object) -> ModelError:
    return ModelError(
        "The model's chat template cannot be used for these messages:",
        [Problem(str(message), "a template for system, user and assistant messages", "prompt.style=plain")],
    )
