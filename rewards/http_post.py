"""One HTTP request with a deadline for all of it: a server that sends a byte now and then gains no time."""

import http.client
import io
import socket
import time
import urllib.request
from collections.abc import Mapping
from functools import partial
from typing import Any


class Deadline:
    """The moment at which a request ends, whatever it is doing."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left. `TimeoutError` when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"expected the whole reply within {self._seconds:g} s, found it unfinished")
        return left


def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float, max_bytes: int) -> bytes:
    """Return the body of the reply.

    `HTTPError` for a status other than 2xx, redirects among them; `OSError`, `HTTPException` or `ValueError` for a
    reply that does not come whole, in time and in at most `max_bytes`.
    """
    deadline = Deadline(seconds)
    opener = urllib.request.build_opener(_StayHere, _Handler(deadline), _SecureHandler(deadline))
    with opener.open(urllib.request.Request(url, body, dict(headers)), timeout=deadline.left()) as reply:
        found = reply.read(max_bytes + 1)
    if len(found) > max_bytes:
        raise ValueError(f"expected a reply of at most {max_bytes} bytes, found more")
    if reply.length:  # the number of bytes that were announced and did not come
        raise http.client.IncompleteRead(found, reply.length)
    deadline.left()
    return found


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address: it counts as a failure, like any status but 200."""

    def redirect_request(self, *_: object) -> None:
        return None


class _Handler(urllib.request.HTTPHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Connection, deadline=self._deadline), req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_SecureConnection, deadline=self._deadline), req)


class _Connection(http.client.HTTPConnection):
    """Gives every operation of the socket what is left of the deadline."""

    def __init__(self, host: str, *, deadline: Deadline, **options: Any) -> None:
        super().__init__(host, **options)
        self._deadline = deadline
        self._create_connection = self._dial  # the hook that http.client has for this
        self.response_class = partial(_Response, deadline)  # pyright: ignore[reportAttributeAccessIssue]

    def _dial(self, address: tuple[str, int], *_: object) -> socket.socket:
        """Connect to the first address of the host that answers. A TLS handshake then has what is left."""
        failure: OSError = OSError(f"expected an address of {address[0]}, found none")
        for found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            try:
                connected = socket.create_connection((str(found[4][0]), address[1]), self._deadline.left())
            except OSError as error:
                failure = error
                continue
            connected.settimeout(self._deadline.left())
            return connected
        raise failure

    def send(self, data: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(self._deadline.left())
        super().send(data)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    pass


class _Response(http.client.HTTPResponse):
    def __init__(self, deadline: Deadline, sock: socket.socket, **options: Any) -> None:
        super().__init__(sock, **options)
        self.fp = io.BufferedReader(_TimedReader(self.fp, sock, deadline))


class _TimedReader(io.RawIOBase):
    """Reads what has arrived, and waits for more no longer than the deadline."""

    def __init__(self, source: io.BufferedReader, sock: socket.socket, deadline: Deadline) -> None:
        self._source, self._sock, self._deadline = source, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._deadline.left())
        data = self._source.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()
