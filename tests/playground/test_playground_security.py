"""Who may ask the server, and that no request reaches a file that is not the page's."""

import json

import pytest
from helpers import ROOT
from helpers.playground import get, post, raw

from adapters_hub.playground.server import LARGEST_REQUEST, TOKEN_HEADER

READ = {"text": "the room", "blends": [{}]}
SECRET = "not for the page"


def asked(server, body=READ, **headers):
    """The status of a POST with the page's headers, but for these; None leaves one out."""
    port = server.server_address[1]
    given = {"Content-Type": "application/json", TOKEN_HEADER: server.token,
             "Host": f"127.0.0.1:{port}", **headers}  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    return raw(server, "POST", "/api/read", json.dumps(body), given)[0]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "10.0.0.7:8017",
        "",
        "[",
        "localhost.evil",
    ],
)
def test_a_foreign_host_is_refused(playground, host):
    assert asked(playground, Host=host) == 403
    for path in ("/", "/api/library", "/app.js"):
        status, _, content = raw(playground, "GET", path, headers={"Host": host})
        assert status == 403
        assert playground.token.encode() not in content


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8017", "LOCALHOST:1"])
def test_this_machine_by_any_name_and_port_is_taken(playground, host):
    assert asked(playground, Host=host, Origin=f"http://{host}") == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1"]
)
def test_a_foreign_origin_is_refused(playground, origin):
    assert asked(playground, Origin=origin) == 403


def test_a_request_needs_the_token_of_the_page(playground):
    for token in (None, "", "wrong", playground.token[:-1], "é"):
        assert asked(playground, **{TOKEN_HEADER: token}) == 403
    _, _, page = raw(playground, "GET", "/")
    assert playground.token.encode() in page
    assert asked(playground) == 200


def test_requests_that_are_no_json_of_a_fair_size(playground):
    assert asked(playground, **{"Content-Type": "text/plain"}) == 415
    assert asked(playground, **{"Content-Length": str(LARGEST_REQUEST + 1)}) == 413
    assert asked(playground, **{"Content-Length": "-1"}) == 411
    headers = {"Content-Type": "application/json", TOKEN_HEADER: playground.token}
    for body in ("{", '{"a": NaN}', "[" * 100_000, b"\xff\xfe"):
        status, _, content = raw(playground, "POST", "/api/read", body, headers)
        assert (status, "JSON" in json.loads(content)["error"]) == (400, True)


PATHS = [
    "/../server.py", "/page/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "//etc/passwd",
    "/etc/passwd", "/./app.js/../../../secret.txt", "/secret.txt", "/..\\secret.txt",
    "/api/../secret.txt", "/library/de/adapter_model.safetensors", "/index.html%00.js",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_address_becomes_a_path(playground, play_model, path):
    secret = play_model.library.root.parent / "secret.txt"
    secret.write_text(SECRET)
    for method in ("GET", "POST"):
        headers = {"Content-Type": "application/json", TOKEN_HEADER: playground.token}
        status, _, content = raw(playground, method, path, "{}", headers)
        assert status == 404
        assert SECRET.encode() not in content


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt",
        "..",
        ".",
        "/etc/passwd",
        "de/../../x",
        "\x00",
        "de\\..",
        "~/x",
        ".index.json",
    ],
)
def test_no_name_becomes_a_path(playground, play_model, name):
    before = sorted(play_model.library.root.parent.rglob("*"))
    assert post(playground, "/api/read", {"text": "a", "blends": [{name: 1}]})[0] == 404
    for said in ({"first": name, "second": "de"}, {"first": "de", "second": name}):
        assert post(playground, "/api/profile", said)[0] == 404
    assert post(playground, "/api/export", {"blend": {"de": 1}, "name": name})[0] == 400
    job = {"name": name, "rows": "a room", "language": "de"}
    assert post(playground, "/api/job", job)[0] == 400
    assert sorted(play_model.library.root.parent.rglob("*")) == before


def test_rows_are_no_files(playground, play_model):
    """A path as rows is text to learn, and settings that name files are not taken."""
    job = {"name": "x", "rows": "/etc/passwd", "format": "../jsonl"}
    assert post(playground, "/api/job", job)[0] == 400
    job = {"name": "x", "rows": "/etc/passwd", "format": "jsonl", "data": "/etc/passwd"}
    status, said = post(playground, "/api/job", job)
    assert status == 400
    assert said["error"].startswith("rows.jsonl:1: not JSON")


def test_other_methods_and_headers(playground):
    assert raw(playground, "PUT", "/api/library", "{}")[0] == 501
    status, headers, _ = raw(playground, "GET", "/")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers
    assert playground.server_address[0] == "127.0.0.1"


def test_the_page_asks_nobody_else(playground):
    """No address of another machine in what the browser is given, which is all that is there."""
    files = {path.name for path in (ROOT / "adapters_hub/playground/page").iterdir()}
    assert {path.strip("/") or "index.html" for path in playground.files} == files
    for path in playground.files:
        status, _, content = raw(playground, "GET", path)
        assert status == 200
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "@import" not in text
    assert get(playground, "/favicon.ico")[0] == 404
