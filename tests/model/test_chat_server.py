"""`python -m model.chat endpoint=URL`: what is sent to a server, and what is made of its answers."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from conf.cli import load_config
from model.chat.__main__ import chat

MODELS = json.dumps({"data": [{"id": "sail"}]}).encode()


def event(text: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n".encode()


ANSWER = b": a comment\n\n" + event("<think>a") + event("\x1b[2Jb") + event("é") + b"data: [DONE]\n\n"


class FakeServer:
    """A server that says `models` and `answer`, and keeps what it was asked."""

    def __init__(self) -> None:
        self.models, self.answer, self.status = MODELS, ANSWER, 200
        self.asked: list[tuple[dict, dict]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, fake.models)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fake.asked.append((json.loads(body), dict(self.headers)))
                self.reply(fake.status, fake.answer)

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                if status == 307:
                    self.send_header("Location", f"{fake.address}/elsewhere")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


def talk(server: FakeServer, *overrides: str) -> None:
    chat(*load_config("chat", [f"endpoint={server.address}", "question=What?", *overrides]))


@pytest.mark.parametrize("mode", ["think", "direct", "auto"])
def test_the_mode_is_sent_and_an_answer_without_a_judgement_is_remarked_on_in_mode_auto(server, mode, capsys):
    talk(server, f"mode={mode}")
    assert server.asked[0][0]["chat_template_kwargs"] == {
        "thinking": {"think": True, "direct": False, "auto": "if_needed"}[mode]
    }
    assert ("expects an answer that begins with <judge>" in capsys.readouterr().err) is (mode == "auto")
    server.answer = event('<judge>{"requires_reasoning": false}</judge>') + event("4") + b"data: [DONE]\n\n"
    talk(server, f"mode={mode}")
    assert capsys.readouterr().err == ""


def test_question_images_mode_and_limits_are_sent_and_the_answer_is_harmless_text(server, tmp_path, capsys):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "p.png")
    talk(server, f"image={tmp_path / 'p.png'}", "mode=think", "max_completion_tokens=7", "temperature=0.5", "seed=3")
    ((asked, headers),) = server.asked
    picture, text = asked["messages"][0]["content"]
    content = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(content)).size == (3, 2) and text == {"type": "text", "text": "What?"}
    assert (asked["model"], asked["max_tokens"], asked["temperature"], asked["seed"]) == ("sail", 7, 0.5, 3)
    assert asked["chat_template_kwargs"] == {"thinking": True} and "Authorization" not in headers
    assert capsys.readouterr().out == "<think>a\\x1b[2Jbé\n"


def test_a_conversation_sends_what_was_said(server, monkeypatch):
    import builtins

    typed = iter(["First?", "Second?", ""])
    monkeypatch.setattr(builtins, "input", lambda _: next(typed))
    talk(server, "question=''", "mode=direct")
    messages = server.asked[1][0]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "<think>a\x1b[2Jbé"
    assert server.asked[1][0]["chat_template_kwargs"] == {"thinking": False}


def test_a_key_is_sent_and_never_shown(server, monkeypatch):
    monkeypatch.setenv("CHAT_KEY", "sesame")
    server.status, server.answer = 401, b'{"error": "no"}'
    with pytest.raises(ValueError, match=r"answered with status 401: .*no") as error:
        talk(server, "api_key_env=CHAT_KEY")
    assert server.asked[0][1]["Authorization"] == "Bearer sesame" and "sesame" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "content", "message"),
    [
        ("models", b"<html>", "expected JSON"),
        ("models", b'{"data": []}', "expected a list of models"),
        ("models", b"[" * 100_000, "expected JSON"),
        ("answer", b"data: {}\n\n", "answered: {}"),
        ("answer", b'data: {"error": {"message": "\\u001b[2J"}}\n\n', "answered"),
        ("answer", b"data: nonsense\n\n", "expected JSON"),
        ("answer", event("half"), "broke its answer off"),
        ("answer", b"", "broke its answer off"),
    ],
)
def test_an_answer_that_is_none_is_an_error_and_no_text(server, field, content, message):
    setattr(server, field, content)
    with pytest.raises(ValueError, match=f"endpoint: .*{message}") as error:
        talk(server)
    assert str(error.value).isprintable() and len(str(error.value)) < 800


def test_a_server_that_is_not_there_is_said_with_how_to_start_one(server):
    server.close()
    with pytest.raises(ValueError, match=r"expected a server at http://127.*start one with python -m rlhf\.serve"):
        talk(server)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint=c", "endpoint=http://a/v1"], "checkpoint: .*found c and http://a/v1"),
        ([], "checkpoint: .*found nothing"),
        (["endpoint=ftp://a"], "endpoint: expected an address"),
        (["endpoint=http://user:secret@a/v1"], "endpoint: .*another form"),
        (["checkpoint=c", "api_key_env=X"], "api_key_env"),
    ],
)
def test_one_place_is_asked(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config("chat", overrides)


def test_a_redirect_is_told_and_takes_the_key_nowhere(server, monkeypatch):
    monkeypatch.setenv("CHAT_KEY", "secret")
    server.status, server.answer = 307, b"moved"
    with pytest.raises(ValueError, match="answered with status 307: moved"):
        talk(server, "api_key_env=CHAT_KEY")
    assert len(server.asked) == 1
