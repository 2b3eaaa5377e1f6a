"""What a plugin of vLLM cannot do from a resolver: notice a replaced adapter, list the library.

vLLM resolves a name once and keeps it. ``vllm serve --middleware`` puts `LibraryMiddleware` before
its routes. Knows ASGI and vLLM's ``OpenAIServingModels``.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adapters_hub.errors import AdaptersHubError
from adapters_hub.serving.vllm_plugin import log, request_for, sums_for

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

    from adapters_hub.serving.sums import Sums

Message = MutableMapping[str, Any]  # ASGI's own types
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Models(Protocol):
    """What is used here of vLLM's ``OpenAIServingModels``."""

    model_config: Any
    engine_client: Any
    lora_id_counter: Any
    lora_requests: "dict[str, LoRARequest]"


class LibraryMiddleware:
    """Before each request: adapters that were replaced are; ``GET /v1/models`` has the library."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._state: tuple[int, ...] | None = None
        self._checked: dict[str, LoRARequest] = {}
        self._stale: set[str] = set()
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        lora = models = None
        if scope["type"] == "http":
            state = scope["app"].state
            models = getattr(state, "openai_serving_models", None)
            lora = getattr(getattr(state, "vllm_config", None), "lora_config", None)
        if models is not None and lora is not None:
            if scope["method"] == "GET" and scope["path"].endswith("/v1/models"):
                send = await self._listing(models, lora.max_lora_rank, send)
            elif scope["method"] == "POST":
                await self._notice(models)
                if self._stale:
                    receive = await self._renewing(models, receive)
        await self.app(scope, receive, send)

    async def _notice(self, models: Models) -> None:
        """Find the names whose content is another now: all where the library has changed, else
        new ones, which may have been read before it did.
        """
        sums = sums_for(models.model_config.model)
        state = sums.library.state()
        if state == self._state and len(models.lora_requests) == len(self._checked):
            return
        async with self._lock:
            requests = dict(models.lora_requests)
            for name, request in requests.items():
                if state == self._state and self._checked.get(name) is request:
                    continue
                digest = _digest_of(request, sums.cache)
                if digest is not None and await asyncio.to_thread(_now, sums, name) != digest:
                    self._stale.add(name)
                else:
                    self._stale.discard(name)
            self._state, self._checked = state, requests

    async def _renewing(self, models: Models, receive: Receive) -> Receive:
        """Renew the name that a request asks for; what gives its body once more."""
        messages = [await receive()]
        while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
            messages.append(await receive())
        try:
            asked = json.loads(b"".join(message.get("body", b"") for message in messages))
        except ValueError:
            asked = None
        name = asked.get("model") if isinstance(asked, dict) else None
        if isinstance(name, str) and name in self._stale:
            async with self._lock:
                if name in self._stale:
                    await _renew(models, name)
                    self._stale.discard(name)

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        return again

    async def _listing(self, models: Models, limit: int, send: Send) -> Send:
        """What adds the library, up to a rank, to a list of models on its way out."""
        sums = sums_for(models.model_config.model)
        try:
            library = await asyncio.to_thread(sums.servable)
        except AdaptersHubError as error:
            log.warning("GET /v1/models: %s", error)
            library = []
        plain = {request.lora_name: name for name, request in models.lora_requests.items()}
        start: Message = {}
        body = b""

        def whole() -> bytes:
            listed = json.loads(body)
            cards = listed["data"]
            for card in cards:
                card["id"] = plain.get(card["id"], card["id"])
            present = {card["id"] for card in cards}
            parent = cards[0]["id"] if cards else None
            cards += [
                {
                    "id": info.name,
                    "object": "model",
                    "created": int(time.time()),
                    "owned_by": "adapters_hub",
                    "root": info.path,
                    "parent": parent,
                    "permission": [],
                }
                for info in library
                if info.name not in present and info.rank <= limit
            ]
            return json.dumps(listed, ensure_ascii=False).encode()

        async def held(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and message["status"] == 200:
                start = message
            elif message["type"] == "http.response.body" and start:
                body += message.get("body", b"")
                if not message.get("more_body"):
                    content = whole()
                    kept = [pair for pair in start["headers"] if pair[0] != b"content-length"]
                    length = (b"content-length", str(len(content)).encode())
                    await send({**start, "headers": [*kept, length]})
                    await send({"type": "http.response.body", "body": content})
            else:
                await send(message)

        return held


async def _renew(models: Models, name: str) -> None:
    """Put what a name means now in the place of what it meant.

    The old one stays until then, for requests on their way. What cannot be had is taken out: vLLM
    asks the resolver again, and says why not.
    """
    request = await asyncio.to_thread(request_for, models.model_config.model, name)
    if request is not None:
        request.lora_int_id = models.lora_id_counter.inc(1)
        try:
            await models.engine_client.add_lora(request)
        except Exception as error:  # whatever vLLM's process raised
            log.warning("model %r was replaced, and cannot be loaded: %s", name, error)
            request = None
    if request is None:
        models.lora_requests.pop(name, None)
    else:
        models.lora_requests[name] = request


def _digest_of(request: "LoRARequest", cache: Path) -> str | None:
    """Of an adapter that the resolver made; None for one of vLLM's flags or another plugin."""
    path = Path(request.lora_path)
    return path.name if path.parent == cache.absolute() else None


def _now(sums: "Sums", name: str) -> str | None:
    """The digest of what a name means now; None where it means nothing."""
    try:
        return sums.digest(name)
    except (AdaptersHubError, OSError):
        return None
