"""The server: addresses to views, and who may ask.

Only this machine is listened to. A request must name it (against DNS rebinding), what changes or
computes must come from the page itself (its origin, and a token that only the page was given), and
files come from a fixed list: no part of an address ever becomes a path.
"""

import html
import json
import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import ClassVar, TypeVar
from urllib.parse import quote, urlsplit

from adapters_hub import __version__
from adapters_hub.errors import AdaptersHubError, NotFoundError, SettingsError, TrainingError
from adapters_hub.evaluation.cell_file import CellFile
from adapters_hub.model import AdaptedModel
from adapters_hub.playground.fields import Request, public
from adapters_hub.playground.jobs import Jobs
from adapters_hub.playground.views import VIEWS, describe, export

log = logging.getLogger(__name__)

_Answer = dict[str, object] | tuple[str, bytes]
_Given = TypeVar("_Given", bound=_Answer)

ADDRESS = "127.0.0.1"
TOKEN_HEADER = "X-Playground-Token"
LARGEST_REQUEST = 32 << 20
"""Bytes of one request; rows to train on are the largest."""

_FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/app.js": ("app.js", "text/javascript"),
    "/draw.js": ("draw.js", "text/javascript"),
    "/views.js": ("views.js", "text/javascript"),
    "/library.js": ("library.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_LOCAL = ("127.0.0.1", "localhost", "::1")
_AT_ONCE = 2  # forwards; more would only wait for each other's threads
_PATIENCE = 60  # seconds for a request to come in
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Playground(ThreadingHTTPServer):
    """The page of one model on this machine; a thread a request.

    ``matrix`` are the cells that the heat map shows. Port 0 takes any that is free; ``url`` says
    which. Raises `SettingsError` for a port that cannot be had.
    """

    daemon_threads = True

    def __init__(
        self, model: AdaptedModel, *, port: int = 0, matrix: Sequence[CellFile] = ()
    ) -> None:
        self.model, self.matrix = model, list(matrix)
        self.jobs = Jobs(model)
        self.token = secrets.token_urlsafe(24)
        self.computing = threading.BoundedSemaphore(_AT_ONCE)
        folder = resources.files("adapters_hub.playground") / "page"
        self.files = {
            address: ((folder / name).read_bytes(), kind)
            for address, (name, kind) in _FILES.items()
        }
        page, kind = self.files["/"]
        page = page.replace(b"{token}", html.escape(self.token).encode())
        self.files["/"] = page.replace(b"{version}", __version__.encode()), kind
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SettingsError(
                f"--port {port}: cannot be listened at ({reason}); give another, or 0 for any"
            ) from None

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def server_close(self) -> None:
        """Stop a training that runs, and let go of the port."""
        self.jobs.close()
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    """One request. Every answer is JSON, but for the page's files and exports."""

    server: Playground
    server_version = f"adapters-hub/{__version__}"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE
    _STATUS: ClassVar[dict[type[Exception], int]] = {NotFoundError: 404, TrainingError: 409}

    def do_GET(self) -> None:
        """Files of the page, and what there is."""
        address = urlsplit(self.path).path
        if not self._is_local():
            return
        if address in self.server.files:
            content, kind = self.server.files[address]
            self._send(200, content, f"{kind}; charset=utf-8")
        elif address == "/api/library":
            self._answer(lambda: {**describe(self.server.model), "matrix": self.server.matrix})
        elif address == "/api/job":
            self._answer(self.server.jobs.state)
        else:
            self._refuse(404, "there is nothing at this address")

    def do_POST(self) -> None:
        """What computes or changes something, for the page alone."""
        address = urlsplit(self.path).path
        if not self._is_local() or not self._is_ours():
            return
        body = self._body()
        if body is None:
            return
        jobs, model = self.server.jobs, self.server.model
        view = VIEWS.get(address.removeprefix("/api/")) if address.startswith("/api/") else None
        if view is not None:
            self._answer(lambda: self._computed(lambda: view(model, Request(_read(body)))))
        elif address == "/api/export":
            self._answer(lambda: self._computed(lambda: export(model, Request(_read(body)))))
        elif address == "/api/job":
            self._answer(lambda: jobs.start(Request(_read(body))))
        elif address == "/api/job/stop":
            self._answer(jobs.stop)
        else:
            self._refuse(404, "there is nothing at this address")

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing: requests come with every letter that is typed."""

    # ── who may ask ──────────────────────────────────────────────────────────────────────────

    def _is_local(self) -> bool:
        """Refuse a request that names another machine: a foreign page that was led here."""
        host = self.headers.get("Host", "")
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        if name in _LOCAL:
            return True
        self._refuse(403, "this page answers at 127.0.0.1 and localhost only")
        return False

    def _is_ours(self) -> bool:
        """Refuse what was not sent by the page that this server gave out."""
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers['Host']}":
            self._refuse(403, "this request comes from another page")
            return False
        token = self.headers.get(TOKEN_HEADER, "")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(403, "the page is from an earlier start of the server; load it again")
            return False
        return True

    def _body(self) -> bytes | None:
        """The request's body; None where it was refused."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self._refuse(411, "a request needs a length")
        elif int(length) > LARGEST_REQUEST:
            self._refuse(413, f"{int(length)} bytes; {LARGEST_REQUEST} at most")
        elif self.headers.get_content_type() != "application/json":
            self._refuse(415, "a request is JSON")
        else:
            return self.rfile.read(int(length))
        return None

    # ── answers ──────────────────────────────────────────────────────────────────────────────

    def _answer(self, work: Callable[[], _Answer]) -> None:
        """Send what the work gives: JSON, or a file's name and content."""
        try:
            given = work()
        except AdaptersHubError as error:
            message = public(str(error), self.server.model.library)
            self._refuse(self._STATUS.get(type(error), 400), message)
            return
        except Exception as error:
            log.exception("%s", self.path)
            self._refuse(500, f"{type(error).__name__}: {error}")
            return
        if isinstance(given, tuple):
            name, content = given
            named = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
            self._send(200, content, "application/octet-stream", named)
        else:
            self._send_json(200, given)

    def _computed(self, work: Callable[[], _Given]) -> _Given:
        """The result of the work, done when it is its turn; sending it blocks nobody."""
        with self.server.computing:
            return work()

    def _refuse(self, status: int, message: str) -> None:
        self.close_connection = True  # a body that was not read would be taken for a request
        self._send_json(status, {"error": message})

    def _send_json(self, status: int, data: dict[str, object]) -> None:
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        self._send(status, text.encode(), "application/json; charset=utf-8")

    def _send(
        self, status: int, content: bytes, kind: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**_SAFE, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):  # the page asked again, and left
            self.close_connection = True


def _read(body: bytes) -> object:
    """A body's JSON; `SettingsError` for none, and for numbers that JSON does not have."""
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"a request is JSON ({error})") from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")
