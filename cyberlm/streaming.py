"""One reply of a model, piece by piece, as it is generated."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextIteratorStreamer

from cyberlm.evaluation.scoring import answering, autocast
from cyberlm.models.loaded import LoadedModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when a reply ends.

    Attributes:
        temperature: 0 for the likeliest token; above, tokens are sampled.
        top_p: Sampled among the likeliest tokens that have this much probability together.
        stop: Texts at which the reply ends; they are not part of it.
        seed: Of the sampling; None for another reply every time.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


class Reply:
    """A reply to one prompt: iterate over its text once, then read how it ended.

    The model works in a thread of its own from the first `next` on. It is not safe to generate two replies with one
    model at a time.

    Args:
        space: What a reply may begin with, and which is no part of it: the chat template writes it (`Prompt.space`).

    Attributes:
        finish_reason: `stop` or `length`, as OpenAI names them.
        tokens: New tokens so far, the end of turn included.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt_ids: Sequence[int],
        stop_ids: Sequence[int],
        sampling: Sampling,
        space: str = "",
    ) -> None:
        self._space = space
        self._loaded, self._prompt_ids, self._stop_ids, self._sampling = loaded, prompt_ids, stop_ids, sampling
        self._pad_id = tokenizer.pad_token_id
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._cancelled = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._generate, daemon=True)
        self.tokens = 0
        self.finish_reason = "stop"

    def __iter__(self) -> Iterator[str]:
        self._thread.start()
        try:
            yield from self._before_stop()
        finally:
            self.close()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends the reply at the next token, and waits for that."""
        self._cancelled.set()
        if self._thread.is_alive():
            self._thread.join()

    def _before_stop(self) -> Iterator[str]:
        """Text up to the first of the stop texts; what could be the beginning of one is held back."""
        held, space = "", self._space
        longest = max(map(len, self._sampling.stop), default=1)
        for piece in self._streamer:
            held += piece
            if space and held:
                held, space = held.removeprefix(space), ""
            found = [place for stop in self._sampling.stop if (place := held.find(stop)) >= 0]
            if found:
                self.finish_reason = "stop"
                yield held[: min(found)]
                return
            ready = len(held) - longest + 1
            if ready > 0:
                yield held[:ready]
                held = held[ready:]
        if held:
            yield held

    def _generate(self) -> None:
        sampling = self._sampling
        sampled = {"temperature": sampling.temperature, "top_p": sampling.top_p} if sampling.temperature > 0 else {}
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=bool(sampled),
            eos_token_id=list(self._stop_ids),
            pad_token_id=self._pad_id,
            **sampled,
        )
        ids = torch.tensor([self._prompt_ids], device=self._loaded.device)
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        try:
            with answering(self._loaded.model), autocast(self._loaded.device):
                self._loaded.causal.generate(  # type: ignore[operator]
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=config,
                    streamer=self._streamer,
                    stopping_criteria=[self._count],
                )
        except Exception as error:  # shown where the reply is read, not in this thread
            self._error = error
        finally:
            self._streamer.end()

    def _count(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Called after each token: whether the reply was cancelled."""
        self.tokens = input_ids.shape[1] - len(self._prompt_ids)
        ended = int(input_ids[0, -1]) in self._stop_ids
        self.finish_reason = "length" if self.tokens >= self._sampling.max_new_tokens and not ended else "stop"
        return torch.full((1,), self._cancelled.is_set(), dtype=torch.bool, device=input_ids.device)
