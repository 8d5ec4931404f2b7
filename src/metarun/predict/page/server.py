"""``metarun serve``: the page on a port of this machine, until Ctrl-C."""

from __future__ import annotations

import errno
import logging
import socket
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from metarun.errors import UserError
from metarun.predict.page.app import Page
from metarun.predict.page.learner import Learner

log = logging.getLogger(__name__)
PATIENCE = 5.0  # seconds that a learner at work is given when the page ends
SERVED: list[Page] = []  # kept until Python has ended: a request's thread that frees the net's tensors meanwhile would abort it


class Handler(WSGIRequestHandler):
    """Requests without a line for each in the terminal; one that stops half-way is given up."""

    timeout = 60  # seconds

    def log(self, type: str, message: str, *args: Any) -> None:
        log.debug(message, *args)

    def version_string(self) -> str:
        return "metarun"


def serve(learner: Learner, host: str, port: int, show: bool = False) -> str:
    """Serve the page until a signal comes (``KeyboardInterrupt``); returns its address.

    Args:
        learner: who answers.
        host: the name or address to listen on; one of this machine's own (127.0.0.1) is reached by nobody else.
        port: 0 for any that is free.
        show: open it in the user's browser.

    Raises:
        UserError: the port is in use, or cannot be listened on.
    """
    private = _private(host)
    page = Page(learner, ("localhost", "127.0.0.1", "::1", host) if private else None)
    SERVED.append(page)
    with listening(page, host, port) as server:
        address = f"http://{f'[{host}]' if ':' in host else host}:{server.port}/"
        print(f"{'learner':12} {learner.about}")
        print(f"{'page':12} {address} (Ctrl-C ends it)")
        if not private:
            print(f"{'open to':12} everybody who can reach {host}: there is no password", flush=True)
        if show:
            webbrowser.open(address)
        print(end="", flush=True)
        server.serve_forever()  # returns on KeyboardInterrupt
    if page.learning.acquire(timeout=PATIENCE):  # a thread in the middle of its arithmetic would be cut when Python ends
        page.learning.release()
    return address


@contextmanager
def listening(page: Page, host: str, port: int) -> Iterator[BaseWSGIServer]:
    """A server of the page that has its port; within the block it listens, and after it the port is free.

    Raises:
        UserError: as ``serve``.
    """
    try:
        socket_ = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            line = f"port {port} is in use by another program: choose another with --port N, or --port 0 for any that is free"
            raise UserError(line) from None
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror or error}; see --host and --port") from None
    with socket_:
        server = make_server(host, port, page, threaded=True, request_handler=Handler, fd=socket_.fileno())
        try:
            yield server
        finally:
            server.server_close()


def _private(host: str) -> bool:
    """Whether only programs of this machine reach ``host``."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
