"""What the plugin and the middleware do for vLLM, with its few classes they touch stood in for."""

import asyncio
import itertools
import json
import logging
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
from helpers import lora_tensors, write_peft_folder

import adapters_hub as ah
from adapters_hub.serving import vllm_plugin
from adapters_hub.serving.vllm_middleware import LibraryMiddleware

BASE = "/models/base"


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


class Registry:
    def __init__(self):
        self.resolvers = {}

    def register_resolver(self, name, resolver):
        self.resolvers[name] = resolver


@pytest.fixture
def library(tmp_path, monkeypatch):
    library = ah.Library(tmp_path / "library")
    library.add(write_peft_folder(tmp_path / "1", seed=1), name="one")
    library.add(write_peft_folder(tmp_path / "2", seed=2), name="two")
    monkeypatch.setenv("ADAPTERS_HUB_LIBRARY", str(library.root))
    monkeypatch.setenv("ADAPTERS_HUB_CACHE", str(tmp_path / "cache"))
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    modules["vllm.lora.request"].LoRARequest = LoRARequest
    modules["vllm.lora.resolver"] = resolver = ModuleType("vllm.lora.resolver")
    resolver.LoRAResolver, resolver.LoRAResolverRegistry = object, Registry()
    for name, stand_in in modules.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    vllm_plugin.sums_for.cache_clear()
    yield library
    vllm_plugin.sums_for.cache_clear()


@pytest.fixture
def models(library):
    """As vLLM's, with two adapters resolved and one of its flags'."""
    numbers = itertools.count(100)
    added = []

    async def add_lora(request):
        if request.lora_path in made.broken:
            raise ValueError("no")
        added.append(request.lora_name)

    made = SimpleNamespace(
        model_config=SimpleNamespace(model=BASE), added=added, broken=set(),
        engine_client=SimpleNamespace(add_lora=add_lora), lora_requests={},
        lora_id_counter=SimpleNamespace(inc=lambda by: next(numbers)),
    )  # fmt: skip
    for name in ("one", "one + two"):
        made.lora_requests[name] = vllm_plugin.request_for(BASE, name)
    made.lora_requests["static"] = LoRARequest("static", 1, "/somewhere/else")
    return made


def replace(library, tmp_path, name, seed):
    source = write_peft_folder(tmp_path / f"new{seed}", seed=seed)
    library.add(source, name=name, replace_existing=True)


def call(middleware, models, method, path, body=b"{}"):
    """Send a request in two pieces; the answer's status and body."""
    pieces = [
        {"type": "http.request", "body": body[:5], "more_body": True},
        {"type": "http.request", "body": body[5:]},
    ]
    sent = []

    async def receive():
        return pieces.pop(0)

    async def send(message):
        sent.append(message)

    lora = None if models is None else SimpleNamespace(max_lora_rank=8)
    config = SimpleNamespace(lora_config=lora)
    app = SimpleNamespace(state=SimpleNamespace(openai_serving_models=models, vllm_config=config))
    scope = {"type": "http", "method": method, "path": path, "app": app}
    asyncio.run(middleware(scope, receive, send))
    length = dict(sent[0]["headers"]).get(b"content-length")
    text = b"".join(message.get("body", b"") for message in sent[1:])
    assert length in (None, str(len(text)).encode())
    return sent[0]["status"], text


def answering(status, answer):
    """An app that reads its request, and a list of what it read."""
    seen = []

    async def app(scope, receive, send):
        body, more = b"", scope["method"] == "POST"
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body")
        seen.append(body)
        content = json.dumps(answer).encode()
        headers = [(b"content-length", str(len(content)).encode()), (b"x", b"y")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content[:3], "more_body": True})
        await send({"type": "http.response.body", "body": content[3:]})

    return app, seen


def test_a_name_becomes_a_request_with_its_content_in_its_name(library, tmp_path):
    first = vllm_plugin.request_for(BASE, "one + 0.5*two")
    text, _, digest = first.lora_name.partition("@")
    assert text == "one + 0.5*two"
    assert first.lora_path.startswith(str(tmp_path / "cache" / "sums" / digest))
    replace(library, tmp_path, "two", 3)
    second = vllm_plugin.request_for(BASE, "one + 0.5*two")
    assert second.lora_name != first.lora_name
    assert second.lora_int_id != first.lora_int_id
    assert second.lora_path != first.lora_path


def test_the_resolver_is_registered_and_answers(library):
    vllm_plugin.register()
    resolver = sys.modules["vllm.lora.resolver"].LoRAResolverRegistry.resolvers["adapters_hub"]
    assert asyncio.run(resolver.resolve_lora(BASE, "one")).lora_name.startswith("one@")
    assert asyncio.run(resolver.resolve_lora(BASE, "nobody")) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody", "have: one, two"),
        ("auto", "chosen before its text is read"),
        ("one + \n two two", "cannot read the blend"),
    ],
)
def test_what_is_no_blend_is_none_and_logged_on_one_line(library, caplog, name, said):
    assert vllm_plugin.request_for(BASE, name) is None
    (record,) = [r for r in caplog.records if r.msg.startswith("model %r")]
    assert said in record.getMessage()
    assert "\n" not in record.getMessage()


def test_the_rank_that_vllm_must_allow_is_logged(library, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert vllm_plugin.request_for(BASE, "one + two") is not None
    assert "rank 4, for which --max-lora-rank must be 8" in caplog.text


def test_a_replaced_adapter_is_renewed_when_it_is_asked_for(library, models, tmp_path):
    app, seen = answering(200, {})
    middleware = LibraryMiddleware(app)
    ask = lambda name: call(
        middleware, models, "POST", "/v1/completions", json.dumps({"model": name}).encode()
    )
    before = dict(models.lora_requests)
    ask("one")
    assert models.lora_requests == before
    replace(library, tmp_path, "two", 4)
    ask("one")
    ask("static")
    assert models.lora_requests == before
    ask("one + two")
    assert seen[-1] == b'{"model": "one + two"}'
    renewed = models.lora_requests["one + two"]
    assert renewed.lora_path != before["one + two"].lora_path
    assert renewed.lora_int_id >= 100  # of vLLM's counter
    assert models.added == [renewed.lora_name]
    ask("one + two")
    assert models.lora_requests["one + two"] is renewed
    assert {name: models.lora_requests[name] for name in ("one", "static")} == {
        name: before[name] for name in ("one", "static")
    }


def test_what_was_read_before_a_change_and_kept_after_it_is_renewed(library, models, tmp_path):
    app, _ = answering(200, {})
    middleware = LibraryMiddleware(app)
    body = json.dumps({"model": "two"}).encode()
    on_its_way = vllm_plugin.request_for(BASE, "two")
    replace(library, tmp_path, "two", 7)
    call(middleware, models, "POST", "/v1/completions")
    models.lora_requests["two"] = on_its_way
    call(middleware, models, "POST", "/v1/completions", body)
    assert models.lora_requests["two"].lora_path != on_its_way.lora_path


def test_what_is_gone_or_cannot_be_loaded_is_asked_for_anew(library, models, tmp_path):
    app, _ = answering(404, {})
    middleware = LibraryMiddleware(app)
    replace(library, tmp_path, "one", 5)
    models.broken.add(vllm_plugin.request_for(BASE, "one").lora_path)
    library.remove("two")
    for name in ("one", "one + two", "unknown"):
        call(middleware, models, "POST", "/v1/completions", json.dumps({"model": name}).encode())
    assert models.lora_requests.keys() == {"static"}


@pytest.mark.parametrize("body", [b"not json at all", b"[1, 2, 3, 4]", b'{"model": 3, "a": 1}'])
def test_other_bodies_go_on_as_they_are(library, models, tmp_path, body):
    app, seen = answering(400, {})
    replace(library, tmp_path, "one", 6)
    assert call(LibraryMiddleware(app), models, "POST", "/tokenize", body)[0] == 400
    assert seen == [body]


def test_models_has_what_of_the_library_can_be_served_once_each(library, models, tmp_path):
    tensors = lora_tensors(rank=9)
    library.add(write_peft_folder(tmp_path / "9", tensors=tensors), name="wide")
    loaded = models.lora_requests["one + two"].lora_name, models.lora_requests["one"].lora_name
    cards = [{"id": name, "object": "model"} for name in ("base", *loaded)]
    app, _ = answering(200, {"object": "list", "data": cards})
    status, text = call(LibraryMiddleware(app), models, "GET", "/v1/models")
    assert status == 200
    listed = json.loads(text)["data"]
    assert [card["id"] for card in listed] == ["base", "one + two", "one", "two"]
    assert listed[-1]["parent"] == "base"
    app, _ = answering(401, {"error": "no key"})
    assert call(LibraryMiddleware(app), models, "GET", "/v1/models") == (
        401,
        b'{"error": "no key"}',
    )


def test_a_server_without_adapters_is_left_alone(library):
    app, seen = answering(200, {"data": []})
    assert call(LibraryMiddleware(app), None, "GET", "/v1/models") == (200, b'{"data": []}')
    assert seen == [b""]
