"""``metarun serve`` as a program: it listens on this machine alone, ends cleanly on Ctrl-C, and says in a line what is wrong."""

import json
import os
import re
import signal
import socket
import urllib.request

import pytest
from cli_support import assert_one_line, program

from metarun.predict.page.server import _private, listening


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


def test_it_is_for_this_machine_unless_told_otherwise():
    assert [host for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost", "0.0.0.0", "192.0.2.7", "::", "lab") if _private(host)] == [
        "127.0.0.1", "127.8.8.8", "::1", "localhost",
    ]  # fmt: skip
    with listening(None, "127.0.0.1", 0) as server:
        assert server.socket.getsockname() == ("127.0.0.1", server.port)
    with socket.create_server(("127.0.0.1", server.port)):  # free again
        pass
