"""A playground over a tiny backbone, and requests to it as a page makes them, or does not."""

import http.client
import json
import threading
from contextlib import contextmanager

import torch
from peft import LoraConfig

import adapters_hub as ah
from adapters_hub.library.adapter_file import AdapterInfo
from adapters_hub.playground.server import TOKEN_HEADER, Playground
from adapters_hub.tasks import make_task


def model_of_every_kind(folder, backbone, lora_folder):
    """A tiny decoder with a library in a folder: adapters of random factors, and of every head."""
    library = ah.Library(folder / "library")
    for name, said in (("de", {"language": "de"}), ("hotel", {"domain": "hotel"})):
        library.add(
            lora_folder("qwen3", name, task_type="CAUSAL_LM"), name=name,
            task="language-modeling", backbone=backbone, **said,
        )  # fmt: skip
    model = ah.load_backbone(backbone, library=library)
    tasks = {
        "stars": make_task("classification", label_names=("bad", "good")),
        "asking": make_task("question-answering"),
        "names": make_task("token-classification", label_names=("O", "B-X", "I-X")),
    }
    for name, task in tasks.items():
        library.add(_with_head(model, name, task).save(folder / "heads" / name), name=name)
    return model


def _with_head(model, name, task):
    kind = task.peft_task_type(model.backbone)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type=kind)
    info = AdapterInfo(name, task=task.name, domain=name, labels=task.labels,
                       backbone=model.backbone.name, fingerprint=model.backbone.fingerprint)  # fmt: skip
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    change = lambda t: torch.randn(t.shape, generator=generator) * 0.3
    return task.new_adapter(info, model.backbone, lora).map(change)


@contextmanager
def served(model, **options):
    """A running server of a model, gone afterwards."""
    with Playground(model, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def raw(server, method, path, body=None, headers=None):
    """(status, headers, body) of one request with just these headers."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=120)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def get(server, path):
    """A GET's status and JSON."""
    status, _, content = raw(server, "GET", path)
    return status, json.loads(content)


def post(server, path, data, **headers):
    """A POST's status and JSON, as the page sends it."""
    given = {"Content-Type": "application/json", TOKEN_HEADER: server.token, **headers}
    status, _, content = raw(server, "POST", path, json.dumps(data), given)
    return status, json.loads(content)
