"""A request against servers that answer slowly, brokenly or too much."""

import http.client
import socket
import threading
import time

import pytest

from rewards.http_post import post

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def serve():
    """Starts an endpoint that sends these pieces, `pause` seconds apart, whatever it is asked; returns its address."""
    servers = []

    def start(pieces, pause=0.0) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def answer():
            connection, _ = server.accept()
            with connection:
                asked = b""
                while not asked.endswith(b"{}"):
                    asked += connection.recv(65536)
                try:
                    for piece in pieces:
                        connection.sendall(piece)
                        time.sleep(pause)
                except OSError:
                    pass

        threading.Thread(target=answer, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


def ask(url: str, seconds: float = 5.0) -> bytes:
    return post(url, b"{}", {}, seconds, max_bytes=100)


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD, b"Content-Length: 4\r\n\r\n", b"whole"[:4]],
        [HEAD, b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\nwh\r\n", b"2\r\nol\r\n", b"0\r\n\r\n"],
        [HEAD + b"\r\n", b"wh", b"ol"],
    ],
)
def test_a_whole_reply_comes_back(serve, pieces):
    assert ask(serve(pieces, 0.01)) == b"whol"


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (HEAD + b"Content-Length: 1000\r\n\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (HEAD, b"X-More: 1\r\n"),
        (b"", b"H"),
        (HEAD + b"\r\n", b" "),
    ],
)
def test_a_server_that_drips_gains_no_time(serve, start, drop):
    begin = time.monotonic()
    with pytest.raises(OSError, match=r"timed out|within 0\.5 s"):
        ask(serve([start, *[drop] * 60], 0.05), seconds=0.5)
    assert time.monotonic() - begin < 1.5


def test_a_server_that_says_nothing_is_left_in_time(serve):
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        ask(serve([b""], 3.0), seconds=0.3)
    assert time.monotonic() - begin < 1.5


@pytest.mark.parametrize(
    "pieces",
    [
        [b"BROKEN\r\n\r\n"],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n"],
        [HEAD + b"Content-Length: 10\r\n\r\nabc"],
        [],
    ],
)
def test_a_broken_reply_is_an_error_that_http_knows(serve, pieces):
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(serve(pieces))


def test_a_reply_beyond_the_limit_is_refused(serve):
    with pytest.raises(ValueError, match="at most 100 bytes"):
        ask(serve([HEAD + b"\r\n", b"x" * 200]))
