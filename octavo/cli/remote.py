"""Talking to a server with the OpenAI API, of any make, where a verb is given a URL for a model."""

import contextlib
import json
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from octavo.config import Grammar, SamplingParams
from octavo.errors import UsageError, UserError

if TYPE_CHECKING:
    import httpx

    from octavo.engine.prompts import Message

READ_SECONDS = 600  # of silence: a long prompt takes its time, and not every server sends comments meanwhile
KEY_VARIABLES = ("OCTAVO_API_KEY", "OPENAI_API_KEY")
_STRUCTURED = ("octavo", "vllm")  # owners of models whose servers know `structured_outputs`; others would ignore it

ModelOrUrl = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, a GGUF file, a hub name, or an OpenAI server's URL.")
]
ApiKey = Annotated[
    str | None, typer.Option(help="For a URL: its key [default: $OCTAVO_API_KEY, or $OPENAI_API_KEY].", metavar="KEY")
]
Served = Annotated[str | None, typer.Option("--model", help="For a URL: which of its models.", metavar="NAME")]
Body = dict[str, Any]


def is_url(model: str) -> bool:
    """Whether MODEL is a server's address."""
    return model.lower().startswith(("http://", "https://"))


def check_options(model: str, local: Mapping[str, object], remote: Mapping[str, object]) -> None:
    """Raise UsageError for a URL without its beginning, and for an option that was given (is not None) and is for
    models of the other kind."""
    if re.fullmatch(r"[\w.-]+:[0-9]{1,5}(/.*)?", model) and not Path(model).exists():
        raise UsageError(f"{model}: a server's URL begins with http:// or https://: give http://{model}")
    wrong, where = (local, "here, not at a URL") if is_url(model) else (remote, "at a URL, not here")
    for name, value in wrong.items():
        if value is not None:
            raise UsageError(f"{name} is for a model that runs {where}: leave it out with {model}")


class Remote:
    """One model of a server; close it. Ctrl-C while an answer comes closes the connection, which ends the answer
    there."""

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None) -> None:
        """url: with or without /v1. model: by default the only one there is.

        Raises UserError where the server cannot be reached, refuses the key, or has no such model.
        """
        import httpx

        try:
            place = urlsplit(url)
            good = place.hostname and place.port != 0 and not (place.query or place.fragment)
        except ValueError:
            good = False
        if not good:
            raise UsageError(f"{url}: it must look like http://HOST:PORT or https://HOST/v1")
        self.url = url.rstrip("/") + ("" if place.path.rstrip("/").endswith("/v1") else "/v1")
        key = api_key or next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UsageError("the API key has characters that no header can carry: check --api-key")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # a proxy is no way to this machine itself
        here = place.hostname in ("localhost", "127.0.0.1", "::1")
        timeout = httpx.Timeout(READ_SECONDS, connect=10)
        self._http = httpx.Client(headers=headers, timeout=timeout, trust_env=not here)
        try:
            self.model, self._owner = self._find(model)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the connections go. Idempotent."""
        self._http.close()

    def chat(self, messages: "Sequence[Message]", params: SamplingParams) -> Generator[str]:
        """The answer's text as it comes; closing the iterator ends it. Raises UserError for whatever goes wrong."""
        fields = {"messages": list(messages)} | self._sampling(params, chat=True)
        for choice in self._stream("/chat/completions", fields):
            yield (choice.get("delta") or {}).get("content") or ""

    def complete(self, prompt: str, params: SamplingParams) -> Generator[str]:
        """What follows a raw text, as `chat`."""
        for choice in self._stream("/completions", {"prompt": prompt} | self._sampling(params, chat=False)):
            yield choice.get("text") or ""

    # ---- requests

    def _find(self, wanted: str | None) -> tuple[str, str]:
        """The name and the owner of the model to ask for."""
        with self._request("GET", "/models") as response:
            found = _json_of(response)
        cards = found.get("data") if isinstance(found, dict) else None
        if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
            raise UserError(f"{self.url}/models: the answer is no list of models: is this an OpenAI-compatible server?")
        owners = {str(card.get("id")): str(card.get("owned_by", "")) for card in cards}
        names = ", ".join(owners) or "none"
        if wanted is None:
            if len(owners) != 1:
                raise UserError(f"{self.url} has these models: {names}; choose one with --model NAME")
            (wanted,) = owners
        # a server may know more names than it lists, and says itself when it does not
        return wanted, owners.get(wanted, "")

    def _sampling(self, params: SamplingParams, chat: bool) -> Body:
        """Sampling as the API calls it; what is not OpenAI's is sent only where it was asked for."""
        fields: Body = {
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
        }
        asked = {
            "top_k": params.top_k or None,
            "min_p": params.min_p or None,
            "repetition_penalty": params.repetition_penalty if params.repetition_penalty != 1 else None,
            "presence_penalty": params.presence_penalty or None,
            "frequency_penalty": params.frequency_penalty or None,
            "seed": params.seed,
            "stop": list(params.stop) or None,
        }
        fields |= {name: value for name, value in asked.items() if value is not None}
        return fields if params.grammar is None else fields | self._grammar(params.grammar, chat)

    def _grammar(self, grammar: Grammar, chat: bool) -> Body:
        """Raises UsageError where the server would not hold an answer to it: most ignore fields they do not know."""
        if grammar.kind == "json_schema" and chat:
            schema = {"name": "answer", "strict": True, "schema": _schema(grammar.text)}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        if self._owner not in _STRUCTURED:
            hint = "; with --chat it would" if grammar.kind == "json_schema" else ""
            raise UsageError(
                f"{self.url} is not known to hold answers to --{grammar.kind.replace('_', '-')}: octavo's own server "
                f"and vLLM do{hint}"
            )
        if grammar.kind == "json_schema":
            return {"structured_outputs": {"json": _schema(grammar.text)}}
        asked = {"regex": grammar.text} if grammar.kind == "regex" else {"choice": list(grammar.choices)}
        return {"structured_outputs": asked}

    def _stream(self, path: str, fields: Body) -> Iterator[Body]:
        """The first choice of each chunk."""
        body = {"model": self.model, "stream": True} | fields
        with self._request("POST", path, body) as response:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise UserError(f"{self.url}{path}: the answer is no stream of events: is this an OpenAI server?")
            for data in _events(response.iter_bytes()):
                if data == b"[DONE]":
                    return
                chunk = _parsed(data)
                if "error" in chunk:
                    raise UserError(f"{self.url}: the answer broke off: {_message(chunk)}")
                choices = chunk.get("choices")
                if isinstance(choices, list) and choices and isinstance(choices[0], dict):
                    yield choices[0]

    @contextlib.contextmanager
    def _request(self, method: str, path: str, body: Body | None = None) -> "Iterator[httpx.Response]":
        import httpx

        try:
            with self._http.stream(method, self.url + path, json=body) as response:
                if response.status_code != 200:
                    raise UserError(self._refusal(response))
                yield response
        except httpx.InvalidURL as error:
            raise UsageError(f"{self.url}: {error}") from None
        except httpx.TimeoutException:
            raise UserError(f"{self.url}: no answer in time: is the server overloaded, or the address wrong?") from None
        except httpx.ConnectError as error:
            raise UserError(f"{self.url} cannot be reached ({error}): is a server running there?") from None
        except httpx.HTTPError as error:
            raise UserError(f"{self.url}: the connection broke off ({error})") from None

    def _refusal(self, response: "httpx.Response") -> str:
        status, said = response.status_code, _message(_json_of(response))
        if status in (401, 403):
            which = "this key" if "authorization" in self._http.headers else "a request without a key"
            return f"{self.url} refuses {which} ({status}: {said}): give --api-key, or set $OCTAVO_API_KEY"
        if status in (429, 503):
            wait = response.headers.get("retry-after", "")
            return f"{self.url} is busy ({status}: {said}): try again {f'in {wait[:20]} s' if wait else 'later'}"
        if response.is_redirect:
            return f"{self.url} has moved to {response.headers['location'][:200]}: give that address"
        return f"{self.url} refuses ({status}): {said}"


def _events(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The data of server-sent events. Cut at line feeds only: httpx's own lines also end at U+2028, inside of texts."""
    rest = b""
    for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        yield from (line[5:].strip() for line in lines if line.startswith(b"data:"))
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


def _json_of(response: "httpx.Response") -> Any:
    try:
        return json.loads(response.read())
    except ValueError:
        return None


def _parsed(data: bytes) -> Body:
    try:
        chunk = json.loads(data)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise UserError(f"the server sent an event that is no JSON object: {data[:80]!r}")
    return chunk


def _message(body: Any) -> str:
    """What an error says, in OpenAI's envelope or another's."""
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return " ".join(str(said).split())[:500] if said else "no reason given"


def _schema(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"--json-schema: the file is no JSON ({error})") from None
