"""A proxy before a tracking server that fails as networks, gateways and servers do."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import random
import socket
import threading
from typing import Any

__all__ = ["FAULTS", "FaultyProxy"]

_PAGE = b"<!DOCTYPE html><html><head><title>%s</title></head><body><h1>%s</h1>%s</body></html>"
_STATUS = {"400": 400, "401": 401, "404": 404, "429": 429, "500": 500}
FAULTS = (
    "delay",
    "hang",
    *_STATUS,
    "half bodies",
    "dropped answers",
    "login page",
    "redirect to a login page",
    "restart",
)
_DELAY_SECONDS = 0.4
_HANG_SECONDS = 120.0


class FaultyProxy(http.server.ThreadingHTTPServer):
    """Hands requests on to a server on this machine, and fails when told to.

    Parameters
    ----------
    port
        The server's.

    Attributes
    ----------
    uri
        Where clients find it.
    fault
        One of :data:`FAULTS`, or ``None``.
    share
        Of the requests that meet it.
    begins_after
        Batches of points that pass before it begins.
    met
        How many requests met it.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = port
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        self.fault: str | None = None
        self.share, self.begins_after, self.met = 1.0, 0, 0
        self.has_begun = threading.Event()
        self.is_over = threading.Event()
        self._batches = 0
        self._random = random.Random(0)
        self._guard = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def fail(self, fault: str | None, share: float = 1.0, begins_after: int = 0) -> None:
        """Fail so from now on, or after so many batches of points; ``None`` ends it."""
        self.is_over.set()  # for those who hang
        with self._guard:
            self.fault, self.share, self.begins_after = fault, share, begins_after
            self.met = self._batches = 0
            self._random = random.Random(fault)
            self.has_begun, self.is_over = threading.Event(), threading.Event()

    def meets_fault(self, path: str) -> str | None:
        """Return the fault that a request meets."""
        with self._guard:
            if self.fault is None:
                return None
            if self._batches < self.begins_after:
                self._batches += path.endswith("/log-batch")
                return None
            self.has_begun.set()
            if self._random.random() >= self.share:
                return None
            self.met += 1
            return self.fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that left."""

    def close(self) -> None:
        """Stop listening."""
        self.is_over.set()
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.meets_fault(self.path.partition("?")[0])
        if fault == "hang":
            self.server.is_over.wait(_HANG_SECONDS)
            self.close_connection = True
        elif fault == "login page" or self.path == "/login":
            self._answer(200, _page("Sign in", b"<form><input type='password'></form>"))
        elif fault == "redirect to a login page":
            self._answer(302, b"", {"Location": f"{self.server.uri}/login"})
        elif fault in _STATUS:
            self._answer(_STATUS[fault], _page(f"{fault} \x1b[31mno", b"nginx"))
        else:
            if fault == "delay":
                self.server.is_over.wait(_DELAY_SECONDS)
            self._pass_on(body, fault)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _pass_on(self, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            given = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            upstream.request(self.command, self.path, body, given)
            answer = upstream.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):  # the server is away
            self.close_connection = True
            return
        finally:
            upstream.close()
        if fault == "dropped answers":
            self.close_connection = True
            return
        left_out = ("content-length", "transfer-encoding", "connection", "server", "date")
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in left_out}
        self._answer(answer.status, data, headers, cut=fault == "half bodies")

    def _answer(
        self, status: int, data: bytes, headers: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            for key, value in (headers or {"Content-Type": "text/html"}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _page(title: str, body: bytes) -> bytes:
    return _PAGE % (title.encode(), title.encode(), body)
