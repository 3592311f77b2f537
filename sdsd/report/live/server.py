"""The live page and its data over HTTP, to this machine alone."""

from __future__ import annotations

import json
import socketserver
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .page import STYLE, page
from .run import LiveRun

LOOPBACK = "127.0.0.1"
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""What a request may call this server: another name that leads here is a foreign page's (DNS rebinding)."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class LiveServer(ThreadingHTTPServer):
    """Serves the page of one history to this machine; `serve_forever` serves, `address` says where.

    Args:
        path: the file, which need not be there yet.
        port: where to listen; 0 takes a free one.

    Raises:
        OSError: the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, path: str | Path, port: int = 0) -> None:
        self.live = LiveRun(path)
        self.lock = threading.Lock()
        super().__init__((LOOPBACK, port), Handler)

    def server_bind(self) -> None:
        """As the base class, which would also ask the network for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    @property
    def address(self) -> str:
        """For a browser on this machine."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def data(self, known: str | None) -> dict[str, Any]:
        """Read on, and what the page shows then."""
        with self.lock:
            self.live.update()
            return self.live.view(int(known) if known is not None and known.isdecimal() else None)


class Handler(BaseHTTPRequestHandler):
    """GET / (the page), /live.js, /live.css and /data?version=… (what changed since that version)."""

    server: LiveServer
    timeout = 30
    server_version, sys_version = "sdsd", ""

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if name.lower() not in OWN_NAMES:
            return self.send(HTTPStatus.FORBIDDEN, "text/plain", f"expected {' or '.join(OWN_NAMES)} as the host")
        address = urlsplit(self.path)
        if address.path == "/":
            self.send(HTTPStatus.OK, "text/html", page(self.server.live.file.path.name))
        elif address.path == "/live.css":
            self.send(HTTPStatus.OK, "text/css", STYLE)
        elif address.path == "/live.js":
            script = resources.files(__package__).joinpath("live.js").read_text(encoding="utf-8")
            self.send(HTTPStatus.OK, "text/javascript", script)
        elif address.path == "/data":
            known = parse_qs(address.query).get("version", [None])[0]
            text = json.dumps(self.server.data(known), ensure_ascii=False, allow_nan=False)
            self.send(HTTPStatus.OK, "application/json", text)
        else:
            self.send(HTTPStatus.NOT_FOUND, "text/plain", "expected /, /live.js, /live.css or /data")

    def send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode("utf-8")
        try:
            self.send_response(status)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except ConnectionError:
            pass  # the browser has gone

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the terminal: a page asks every second."""
