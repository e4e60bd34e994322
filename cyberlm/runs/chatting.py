"""Answers to what is typed in a terminal, or comes through a pipe."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from cyberlm.config.commands import ChatConfig
from cyberlm.data.batches import make_scoring_batch
from cyberlm.evaluation.scores import choose
from cyberlm.evaluation.scoring import answering, option_log_probs
from cyberlm.runs.open_run import Opened, open_model
from cyberlm.runtime.errors import DataError, Problem, UserError
from cyberlm.runtime.progress import console, harmless, output_lost
from cyberlm.streaming import Reply, Sampling
from cyberlm.tasks.prompts import EncodedQuestion, prompt_hash
from cyberlm.tasks.questions import LETTERS, Question

SEPARATOR = " | "
HELP = """\
A question with its options, on one line:   Which port does HTTPS use? | 80 | 443 | 22
Anything else is a conversation: /new forgets it, /help shows this, /quit or Ctrl-D ends, Ctrl-C stops a reply."""


class Conversation:
    """What has been said so far, and the model that answers."""

    def __init__(self, opened: Opened, config: ChatConfig) -> None:
        self.opened = opened
        self.sampling = Sampling(config.max_new_tokens, config.temperature)
        self.messages: list[dict[str, str]] = []

    def answer(self, line: str) -> Iterator[str]:
        """The reply to a line, in pieces.

        Raises:
            UserError: If the line cannot be asked.
        """
        question, *options = (part.strip() for part in line.split(SEPARATOR))
        return self._question(question, options) if options else self._conversation(line)

    def _question(self, question: str, options: list[str]) -> Iterator[str]:
        """Through the prompt of the run, without what was said before; then the option that evaluation would count."""
        if not 2 <= len(options) <= len(LETTERS):
            raise DataError(
                "This question cannot be asked:", [Problem(f"{len(options)} options", f"2 to {len(LETTERS)}")]
            )
        asked = Question("typed", question, tuple(options), 0)
        encoded = self.opened.prompt.encode([asked])[0]
        yield from self._reply(encoded.prompt_ids)
        chosen = self._likeliest(asked, encoded)
        yield f"\n[likeliest option: {LETTERS[chosen]}) {options[chosen]}]"

    def _likeliest(self, question: Question, encoded: EncodedQuestion) -> int:
        loaded = self.opened.loaded
        batch = make_scoring_batch([encoded.prompt_ids], [encoded.option_ids], [encoded.option_chars], [0])
        with answering(loaded.model):
            log_probs = option_log_probs(loaded, batch.to_device(loaded.device))[0].tolist()
        tokens = [len(ids) for ids in encoded.option_ids]
        rendered = prompt_hash(self.opened.prompt.render(question))
        return choose(log_probs, tokens, encoded.option_chars, self.opened.option_score, rendered)[0]

    def _conversation(self, line: str) -> Iterator[str]:
        prompt = self.opened.prompt
        messages = [*self.messages, {"role": "user", "content": line}]
        said = ""
        try:
            for piece in self._reply(prompt.encode_messages(messages)):
                said += piece
                yield piece
        finally:
            if said:
                self.messages = [*messages, {"role": "assistant", "content": said}]

    def _reply(self, prompt_ids: Sequence[int]) -> Reply:
        room = self.opened.most_tokens - self.sampling.max_new_tokens
        if len(prompt_ids) > room:
            raise DataError(
                "This is more than the model can read:",
                [
                    Problem(
                        f"{len(prompt_ids)} tokens", f"{room}, which leaves {self.sampling.max_new_tokens} for a reply"
                    )
                ],
                "/new forgets what has been said",
            )
        prompt = self.opened.prompt
        return Reply(self.opened.loaded, prompt.tokenizer, prompt_ids, prompt.stop_ids, self.sampling, prompt.space)


def chat(config: ChatConfig) -> None:
    """Reads lines until there are no more, and answers each; replies alone go to standard output."""
    console.stderr = True
    conversation = Conversation(open_model(config), config)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # what is piped in may be in any encoding
    _tell(f"{conversation.opened.name} answers.\n{HELP}")
    for line in _lines("\n> " if sys.stdin.isatty() else ""):
        if line == "/quit" or output_lost():
            break
        if line == "/new":
            conversation.messages = []
        elif line.startswith("/"):
            _tell(HELP)
        elif line:
            _answer(conversation, line)


def _lines(cue: str) -> Iterator[str]:
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input(cue).strip()


def _answer(conversation: Conversation, line: str) -> None:
    try:
        for piece in conversation.answer(line):
            print(harmless(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    except KeyboardInterrupt:  # the reply ends, the conversation goes on
        pass
    except UserError as error:
        _tell(error.screen())
    print(flush=True)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
