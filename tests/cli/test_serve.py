"""``metarun serve`` as a program: it listens on this machine alone, ends cleanly on Ctrl-C, and says in a line what is wrong."""

import http.client
import json
import os
import re
import signal
import socket
import threading
import urllib.request
from contextlib import contextmanager

import pytest
from cli_support import assert_one_line, program

from metarun.predict.page.app import Page
from metarun.predict.page.server import _private, listening
from metarun.predict.page.sessions import BYTES


def test_it_serves_until_ctrl_c(run_folder):
    with program("serve", str(run_folder), "--port", "0", "--json", cwd=run_folder.parent) as process:
        try:
            learner, page = process.stdout.readline(), process.stdout.readline()
            assert re.fullmatch(r"learner +maml trained on glyphs\n", learner)
            address = re.fullmatch(r"page +(http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", page)[1]
            with urllib.request.urlopen(address, timeout=30) as response:
                assert b"<title>metarun</title>" in response.read()
                assert response.headers["Server"] == "metarun"
            os.kill(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert json.loads(out) == {"run": str(run_folder), "learner": "maml trained on glyphs", "page": address}
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=5)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("serve", "name the run's folder: metarun serve RUN"),
        ("serve nowhere", "nowhere"),
        ("serve run more", "serve takes no 'more'"),
        ("serve run --port http", "--port http is not possible: it is a number, 0 to 65535"),
        ("serve run --port 65536", "--port 65536 is not possible"),
        ("serve run --checkpoint first", "--checkpoint takes one of best, last"),
        ("serve run --host 203.0.113.1 --port 0", "cannot listen on 203.0.113.1, port 0"),
        ("web run", "there is no command 'web'; did you mean `metarun serve RUN`?"),
    ],
)
def test_mistakes(metarun, run_folder, words, line):
    assert_one_line(metarun(words), 2, line)


def test_a_port_in_use(metarun, run_folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert_one_line(metarun(f"serve run --port {port}"), 2, f"port {port} is in use by another program: choose another with --port N")


class Blind:
    """A learner that has no eye for pictures."""

    about, ways, steps, together, channels = "blind", None, None, False, 1


@contextmanager
def asked(learner):
    """A function that posts to the page of a learner: (status, JSON)."""
    with listening(Page(learner, ("127.0.0.1",)), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()

        def post(path, body=None, **settings):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("POST", path, body, **settings)
            response = connection.getresponse()
            answer = response.status, json.loads(response.read())
            connection.close()
            return answer

        try:
            yield post
        finally:
            server.shutdown()
            thread.join()


def test_what_is_too_large_is_refused_with_and_without_its_length():
    with asked(Blind()) as post:
        _, facts = post("/sessions")
        place = f"/sessions/{facts['session']}/pictures"
        assert post(place, b"x" * (BYTES + 1)) == (413, {"error": "larger than 20 MB"})
        chunks = (b"x" * 1_000_000 for _ in range(BYTES // 1_000_000 + 2))
        assert post(place, chunks, headers={"Transfer-Encoding": "chunked"}, encode_chunked=True) == (413, {"error": "larger than 20 MB"})


def test_it_is_for_this_machine_unless_told_otherwise():
    assert [host for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost", "0.0.0.0", "192.0.2.7", "::", "lab") if _private(host)] == [
        "127.0.0.1", "127.8.8.8", "::1", "localhost",
    ]  # fmt: skip
    with listening(None, "127.0.0.1", 0) as server:
        assert server.socket.getsockname() == ("127.0.0.1", server.port)
    with socket.create_server(("127.0.0.1", server.port)):  # free again
        pass
