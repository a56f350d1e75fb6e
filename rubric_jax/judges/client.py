"""One chat completion from any server that speaks OpenAI's protocol, with its failures told apart.

  the server says                                   then
  408, 409, 429, 5xx; slow; connection cut/refused;  tried again, after a growing pause or the
    a body that is no chat completion                  server's Retry-After; at last: Failed
  400, 413, 422, other 4xx                           Failed: this call is not accepted
  401, 403, 404                                      Unreachable: no request will be accepted

Nothing is read from a body through the client library's models, so a body of the wrong shape is an
answer like any other.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import openai
import PIL.Image

from rubric_jax import config as config_lib
from rubric_jax.judges import verdicts

_FATAL = (401, 403, 404)
_AGAIN = (408, 409, 425, 429)
_HALF = re.compile("[\ud800-\udfff]")
_INLINE = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


_AT_LEAST = {
    "max_tokens": 0,
    "concurrency": 1,
    "retries": 0,
    "backoff": 0,
    "max_backoff": 0,
    "give_up_after": 1,
    "prompt_price": 0,
    "completion_price": 0,
}


@dataclasses.dataclass(frozen=True)
class Server:
    """Where to ask, and how patiently."""

    model: str
    base_url: str  # such as http://localhost:8000/v1
    api_key_env: str = "OPENAI_API_KEY"  # variable with the key; servers of one's own need none
    temperature: float = 0.0  # below 0: left to the server
    max_tokens: int = 2048  # of an answer; 0: left to the server
    structured: str = "json_schema"  # json_schema, json_object or none: what the server supports
    concurrency: int = 16  # calls under way at a time
    timeout: float = 120.0  # seconds of silence until a call counts as lost
    retries: int = 5  # after the first try
    backoff: float = 1.0  # seconds before the first retry, doubled for each further one
    max_backoff: float = 60.0
    give_up_after: int = 20  # failed in a row, each with its retries, until nothing more is asked
    prompt_price: float = 0.0  # per million tokens
    completion_price: float = 0.0
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more fields of the body

    def __post_init__(self):
        if not self.model or not self.base_url:
            raise ValueError("A judge needs a model and a base_url, such as http://host:8000/v1.")
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url is {self.base_url!r}; it must begin with http:// or https://."
            )
        choices = ("json_schema", "json_object", "none")
        if self.structured not in choices:
            raise ValueError(f"structured is {self.structured!r}; one of {', '.join(choices)}.")
        for name, least in _AT_LEAST.items():
            if not getattr(self, name) >= least:  # NaN is not
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}; it must be above 0.")


def server(model: str, base_url: str, fields: Mapping[str, Any] | None) -> Server:
    """A Server of a config's fields; ValueError names an unknown one, or one of a wrong type."""
    fields = dict(fields or {})
    known = Server.__dataclass_fields__
    for name in fields:
        if name not in known or name in ("model", "base_url"):
            options = [n for n in known if n not in ("model", "base_url")]
            raise ValueError(
                f"A server has no field {name!r}; it must be {config_lib.one_of(name, options)}"
            )
    fields = config_lib.check(Server, fields, what="server")
    return Server(model=model, base_url=base_url, **fields)


@dataclasses.dataclass(frozen=True)
class Reply:
    text: str  # "" if there is none
    finish: str  # stop, length, content_filter, ...
    refused: bool  # the server itself says so
    prompt_tokens: int
    completion_tokens: int

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))  # ASCII: half a surrogate pair has no UTF-8

    @classmethod
    def from_json(cls, text: str) -> Reply:
        return cls(**json.loads(text))


class Failed(Exception):
    """No answer to one call, and what was tried."""

    def __init__(self, reason: str, retries: Mapping[str, int]):
        super().__init__(reason)
        self.reason, self.retries = reason, dict(retries)


class _Again(Exception):
    def __init__(self, kind: str, reason: str, after: float | None = None):
        super().__init__(reason)
        self.kind, self.reason, self.after = kind, reason, after


class Client:
    """Calls to one server. Safe to use from many threads; `close` ends all waiting."""

    def __init__(self, server: Server):
        self.server = server
        self._stop = threading.Event()
        self._client = openai.OpenAI(
            base_url=server.base_url,
            api_key=os.environ.get(server.api_key_env) or "none",
            timeout=server.timeout,
            max_retries=0,  # counted here, not there
        )

    def close(self) -> None:
        self._stop.set()
        self._client.close()

    def ask(
        self, messages: Sequence[Mapping], schema: Mapping, *, seed: int = 0
    ) -> tuple[Reply, dict[str, int]]:
        """(the reply, retries by reason).

        Raises:
          Failed: no answer after all retries, or a request that the server does not accept.
          verdicts.Unreachable: the server accepts no request at all.
        """
        retries: Counter = Counter()
        while True:
            try:
                return self._once(messages, schema, seed), dict(retries)
            except _Again as error:
                number = sum(retries.values())
                if number >= self.server.retries or self._stop.is_set():
                    raise Failed(f"{error.reason} ({number + 1} tries)", retries) from None
                retries[error.kind] += 1
                pause = self.server.backoff * 2**number * random.uniform(0.5, 1.0)
                pause = pause if error.after is None else max(pause, error.after)
                self._stop.wait(min(pause, self.server.max_backoff))

    def _once(self, messages, schema, seed) -> Reply:
        server = self.server
        options: dict[str, Any] = {"seed": seed}
        if server.max_tokens:
            options["max_tokens"] = server.max_tokens
        if server.temperature >= 0:
            options["temperature"] = server.temperature
        if server.structured == "json_schema":
            form = {"name": "answer", "strict": True, "schema": schema}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        elif server.structured == "json_object":
            options["response_format"] = {"type": "json_object"}
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=server.model,
                messages=_sendable(messages),
                extra_body=dict(server.extra),
                **options,
            )
        except openai.APITimeoutError:
            raise _Again("timeout", f"no answer within {server.timeout:g} s") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise _Again("connection", f"{type(cause).__name__}: {cause}") from None
        except openai.APIStatusError as error:
            raise self._status(error) from None
        return _read(raw.http_response.text)

    def _status(self, error: openai.APIStatusError) -> Exception:
        code, text = error.status_code, error.response.text[:300]
        reason = f"{self.server.base_url} answers {code}: {text}"
        if code in _FATAL:
            mend = (
                f"Check base_url and model ({self.server.model!r})."
                if code == 404
                else f"Check the key in ${self.server.api_key_env}."
            )
            return verdicts.Unreachable(f"{reason}. {mend}")
        if code in _AGAIN or code >= 500:
            return _Again(str(code), reason, _seconds(error.response.headers.get("retry-after")))
        return Failed(reason, {})


def each(
    work: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    concurrency: int,
    stop: Callable[[], None],
) -> Iterator[tuple[Any, Any]]:
    """(item, work(item)) as they are done; `concurrency` at a time, items taken as needed.

    `stop` is called in the end, be it an early one: it is to make work under way return soon.
    """
    with futures.ThreadPoolExecutor(concurrency) as pool:
        under_way: dict[futures.Future, Any] = {}
        try:
            for item in items:
                under_way[pool.submit(work, item)] = item
                while len(under_way) >= concurrency:
                    yield from _done(under_way)
            while under_way:
                yield from _done(under_way)
        finally:
            stop()  # before the pool waits for its threads


def image_url(data: bytes) -> str:
    """The image file as a data URL; formats that servers do not read are turned into PNG.

    Raises:
      Failed: not an image.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            kind = _INLINE.get(image.format)
            if kind is None:
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "PNG")
                kind, data = "image/png", buffer.getvalue()
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise Failed(f"an image that cannot be read ({error}); replace it", {}) from None
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _sendable(value: Any) -> Any:
    """The value with U+FFFD for every half of a surrogate pair, which has no UTF-8."""
    if isinstance(value, str):
        return value if value.isascii() else _HALF.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, Mapping):
        return {key: _sendable(inner) for key, inner in value.items()}
    return [_sendable(inner) for inner in value] if isinstance(value, list | tuple) else value


def _done(under_way: dict[futures.Future, Any]) -> Iterator[tuple[Any, Any]]:
    done, _ = futures.wait(under_way, return_when=futures.FIRST_COMPLETED)
    for future in done:
        yield under_way.pop(future), future.result()


def _read(text: str) -> Reply:
    """The reply in a body; anything but a chat completion is the server's failure."""
    try:
        value = json.loads(text)
        choice = value["choices"][0]
        message, usage = choice["message"], value.get("usage") or {}
        content, refusal = message.get("content"), message.get("refusal")
        said = content or refusal or content  # "" is an answer, too; null is none
        if not isinstance(said, str):
            raise TypeError("no content")
        finish = str(choice.get("finish_reason") or "")
        return Reply(
            text=said,
            finish=finish,
            refused=bool(refusal) or finish == "content_filter",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Again("garbage", f"a body that is no chat completion: {text[:200]!r}") from None


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:  # a date; the usual pause will do
        return None
