"""The endpoint of a judge: its settings, checked before a run, and its key, which no message shows."""

import os
import sys
import threading
import time
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

from rewards.config import DEFAULT_REQUESTS_PER_MINUTE
from rewards.result import Options


@dataclass(frozen=True)
class Endpoint:
    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"  # name of the environment variable that holds the key; empty: no key is sent
    request_seconds: float = 60.0  # limit for each request as a whole
    retries: int = 3
    requests_per_minute: float = DEFAULT_REQUESTS_PER_MINUTE
    cache: str = ""  # folder that keeps verdicts; empty: none are kept
    max_requests: int = 0  # the budget of this process, repeated requests counted; 0: no limit
    limiter: "RateLimit" = field(default_factory=lambda: RateLimit(), compare=False)

    def __post_init__(self) -> None:
        """Expand the home folder in `cache`, however the endpoint was made."""
        try:
            if self.cache:
                object.__setattr__(self, "cache", str(Path(self.cache).expanduser()))
        except RuntimeError as error:
            raise _wrong(f"expected cache below a home folder that exists, found {self.cache}: {error}") from None

    def key(self) -> str:
        """Return the key, empty where there is none. `ValueError` for one that a header cannot hold: the client's own
        message would show it."""
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if not key.isascii() or not key.isprintable():
            raise ValueError(
                f"environment variable {self.api_key_env}: expected a key of printable ASCII characters, found others"
            )
        return key

    def without_key(self, text: str) -> str:
        """Return the text with the key masked."""
        key = self.key()
        return text.replace(key, "***") if key else text


class RateLimit:
    """Spaces requests of this process evenly, and counts them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0.0
        self._count = 0

    def take(self, budget: int) -> bool:
        """Count a request; False where the budget (0: no limit) does not have it."""
        with self._lock:
            if budget and self._count >= budget:
                return False
            self._count += 1
            return True

    def wait(self, per_minute: float) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60.0 / per_minute
        time.sleep(turn - now)


def read_endpoint(settings: Options, part: str = "reasoning") -> Endpoint:
    """Return the endpoint that the settings of a part of the reward describe. `ValueError` names the setting that is
    wrong; an address that may hold a secret is not shown."""
    try:
        return _read(settings)
    except _WrongSetting as error:
        raise ValueError(f"reward.options.{part}: {error}") from None


class _WrongSetting(ValueError):
    """The settings of an endpoint cannot be used."""


def _read(settings: Options) -> Endpoint:
    known = [name for name in Endpoint.__dataclass_fields__ if name != "limiter"]
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise _wrong(f"expected some of {', '.join(known)}, found {name!r}{hint}")
    texts = {"base_url": "", "model": "", "api_key_env": "OPENAI_API_KEY", "cache": ""}
    texts = {name: _text(name, settings.get(name, default)) for name, default in texts.items()}
    _check_address(texts["base_url"])
    if not texts["model"]:
        raise _wrong("expected model, the name of the judge at that address, found none")
    variable = texts["api_key_env"]
    if variable and not (variable.isascii() and variable.isidentifier()):
        raise _wrong("expected api_key_env to be the name of an environment variable, found something else")
    endpoint = Endpoint(
        texts["base_url"],
        texts["model"],
        variable,
        request_seconds=_number(settings, "request_seconds", 60.0),
        retries=int(_number(settings, "retries", 3, whole=True)),
        requests_per_minute=_number(settings, "requests_per_minute", DEFAULT_REQUESTS_PER_MINUTE),
        cache=texts["cache"],
        max_requests=int(_number(settings, "max_requests", 0, whole=True)),
    )
    if endpoint.cache and Path(endpoint.cache).exists() and not Path(endpoint.cache).is_dir():
        raise _wrong(f"expected cache to be a folder, found a file at {endpoint.cache}")
    endpoint.key()
    return endpoint


def _wrong(text: str) -> ValueError:
    return _WrongSetting(text)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(f"expected {name} to be a text, found {type(value).__name__}")
    return value


def _number(settings: Options, name: str, default: float, whole: bool = False) -> float:
    value = settings.get(name, default)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        if value > 0 and not whole:
            return value
        if value >= 0 and whole and value == int(value):
            return value
    found = repr(value) if not isinstance(value, int) or abs(value) <= sys.float_info.max else "one that is too large"
    raise _wrong(f"expected {name} to be {'a whole number from 0' if whole else 'above 0'}, found {found}")


def _check_address(url: str) -> None:
    example = "expected base_url to be an address such as http://localhost:8000/v1, found"
    if any(mark in url for mark in "@?#"):
        raise _wrong(
            f"{example} one with a user name, password or query, which is not shown; put a key into the environment "
            "variable that api_key_env names"
        )
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or not url.isascii() or not url.isprintable() or " " in url:
        raise _wrong(f"{example} {url!r}" if url else f"{example} none")
