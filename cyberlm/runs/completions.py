"""OpenAI's chat completions over HTTP, answered by one model, one request after another."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal

from anyio import CancelScope, to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cyberlm.runs.open_run import Opened
from cyberlm.runtime.errors import ModelError
from cyberlm.streaming import Reply, Sampling

MOST_BODY_BYTES = 1 << 20
MOST_WAITING = 32
"""Requests that wait for their turn; one more is told to come back later."""

LOOPBACK_NAMES = ["localhost", "127.0.0.1", "::1", "[::1]"]


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message. Clients send an answer's message back with all of its fields, most of them null or empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    tool_calls: list[Any] | None = Field(None, max_length=0)
    function_call: None = None

    def plain(self) -> dict[str, str]:
        """With its content as one string and `developer`, OpenAI's later name, as system: as chat templates want it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(BaseModel):
    include_usage: bool = False


WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (True, False),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}
"""Fields of OpenAI's that are not understood here, with the values that ask for what happens anyway; null always does.
Nothing is stored, whatever `store` says."""


class ChatRequest(BaseModel):
    """What is understood of a request. What OpenAI knows besides is refused, unless it asks for what happens anyway."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_no_effect(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, allowed in WITHOUT_EFFECT.items():
            if data.get(name) is not None and data[name] not in allowed:
                wants = " or ".join(json.dumps(value) for value in (*allowed, None))
                raise PydanticCustomError("unsupported", "{name}: only {wants} here", {"name": name, "wants": wants})
        return {name: value for name, value in data.items() if name not in WITHOUT_EFFECT}

    def sampling(self, most_new_tokens: int) -> Sampling:
        """How to generate; without a temperature, the likeliest token, as in evaluation."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or most_new_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=tuple(filter(None, stop)),
            seed=self.seed,
        )


class Refused(Exception):
    """A request that cannot be answered, told in OpenAI's format."""

    def __init__(self, status: int, message: str, code: str, parameter: str | None = None) -> None:
        self.status = status
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
        super().__init__(message)


class Completions:
    """The handlers, with the model that answers and the queue before it."""

    def __init__(self, opened: Opened, most_new_tokens: int) -> None:
        self.opened, self.most_new_tokens = opened, most_new_tokens
        self.turn = asyncio.Lock()
        self.waiting = 0
        self.started = int(time.time())

    async def models(self, _: Request) -> Response:
        entry = {"id": self.opened.name, "object": "model", "created": self.started, "owned_by": "cyberlm"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def chat(self, request: Request) -> Response:
        asked = await read_request(request)
        if asked.model != self.opened.name:
            message = f"There is no model {asked.model!r} here, only {self.opened.name!r}."
            raise Refused(404, message, "model_not_found", "model")
        reply, prompt_tokens = self._reply(asked)
        if self.waiting >= MOST_WAITING:
            raise Refused(429, f"{MOST_WAITING} requests are waiting already.", "rate_limit_exceeded")
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}
        if asked.stream:
            counted = asked.stream_options is not None and asked.stream_options.include_usage
            events = self._events(reply, head, prompt_tokens if counted else None)
            return StreamingResponse(events, media_type="text/event-stream")
        text = ""
        async with contextlib.aclosing(self._pieces(reply)) as pieces:
            async for piece in pieces:
                text += piece
                if await request.is_disconnected():
                    break
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": reply.finish_reason,
            "logprobs": None,
        }
        body = {**head, "object": "chat.completion", "choices": [choice], "usage": usage(prompt_tokens, reply)}
        return JSONResponse(body)

    def _reply(self, asked: ChatRequest) -> tuple[Reply, int]:
        prompt = self.opened.prompt
        sampling = asked.sampling(self.most_new_tokens)
        if sampling.max_new_tokens > self.most_new_tokens:
            message = f"max_tokens={sampling.max_new_tokens}: this server gives {self.most_new_tokens} at most."
            raise Refused(400, message, "max_tokens_too_large", "max_tokens")
        try:
            ids = prompt.encode_messages([message.plain() for message in asked.messages])
        except ModelError as error:
            told = error.problems[0].what
            raise Refused(
                400, f"The chat template refuses these messages: {told}", "bad_messages", "messages"
            ) from error
        whole = len(ids) + sampling.max_new_tokens
        if whole > self.opened.most_tokens:
            message = (
                f"{len(ids)} tokens of messages and {sampling.max_new_tokens} of reply are more than the "
                f"{self.opened.most_tokens} that the model can read."
            )
            raise Refused(400, message, "context_length_exceeded", "messages")
        return Reply(self.opened.loaded, prompt.tokenizer, ids, prompt.stop_ids, sampling, prompt.space), len(ids)

    async def _pieces(self, reply: Reply) -> AsyncGenerator[str, None]:
        """The text of a reply, once it is its turn; a reply that nobody waits for any more ends at the next token."""
        self.waiting += 1
        try:
            async with self.turn:
                try:
                    async for piece in iterate_in_threadpool(reply):
                        yield piece
                finally:
                    with CancelScope(shield=True):  # the next may begin only when this one has ended
                        await to_thread.run_sync(reply.close)
        finally:
            self.waiting -= 1

    async def _events(
        self, reply: Reply, head: Mapping[str, Any], prompt_tokens: int | None
    ) -> AsyncGenerator[str, None]:
        """Server-sent events: the role, the text in pieces, how it ended, and, where asked for, the tokens used."""

        def event(delta: dict[str, str], finish_reason: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
            return _event({**head, "object": "chat.completion.chunk", "choices": [choice]})

        yield event({"role": "assistant", "content": ""})
        async with contextlib.aclosing(self._pieces(reply)) as pieces:
            async for piece in pieces:
                yield event({"content": piece})
        yield event({}, reply.finish_reason)
        if prompt_tokens is not None:
            last = {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage(prompt_tokens, reply)}
            yield _event(last)
        yield "data: [DONE]\n\n"


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def usage(prompt_tokens: int, reply: Reply) -> dict[str, int]:
    total = prompt_tokens + reply.tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": reply.tokens, "total_tokens": total}


async def read_request(request: Request) -> ChatRequest:
    """The request's body, checked.

    Raises:
        Refused: If it is no JSON, too long, or asks for what there is not.
    """
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        # a web page elsewhere may post plain text to this machine, but not JSON
        raise Refused(415, "The body must be application/json.", "unsupported_media_type")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY_BYTES:
            raise Refused(413, f"The body is longer than {MOST_BODY_BYTES} bytes.", "body_too_long")
    try:
        return ChatRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = f"{place}: {first['msg']}" if place else first["msg"]
        raise Refused(400, message, "invalid_request", place or None) from error


def build_app(opened: Opened, most_new_tokens: int, *, loopback: bool) -> Starlette:
    """The server's application.

    Args:
        most_new_tokens: Of a reply.
        loopback: Whether only this machine is answered; names that lead elsewhere are then refused, too.
    """
    completions = Completions(opened, most_new_tokens)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return JSONResponse(error.body, error.status)

    async def not_found(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        told = Refused(error.status_code, "There are POST /v1/chat/completions and GET /v1/models.", "unknown_url")
        return JSONResponse(told.body, told.status)

    async def failed(_: Request, error: Exception) -> Response:
        told = Refused(500, f"{type(error).__name__}: {error}", "internal_error")
        return JSONResponse(told.body, told.status)

    return Starlette(
        routes=[
            Route("/v1/models", completions.models),
            Route("/v1/chat/completions", completions.chat, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK_NAMES)] if loopback else [],
        exception_handlers={Refused: refused, HTTPException: not_found, Exception: failed},
    )
