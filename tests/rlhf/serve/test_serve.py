"""`python -m rlhf.serve` up to the start of vLLM's server: its command line, and what is refused before."""

import importlib.util
import json
import os
import socket
import sys

import pytest

from conf.cli import load_config
from model.checkpoint import save_model
from rlhf.serve import __main__ as command_line
from rlhf.serve.command import is_ours, server_arguments
from rlhf.serve.config import ServeConfig


def options(*overrides: str, on_gpu: bool = False, ours: bool = True) -> dict[str, str]:
    config, _ = load_config("serve", list(overrides))
    words = server_arguments(config, ours, on_gpu)
    assert words[0] == "-m" and words[1].startswith("vllm.")
    return {name: value for name, value in zip(words, [*words[1:], ""], strict=True) if name.startswith("--")}


@pytest.mark.parametrize(("mode", "thinks"), [("think", True), ("direct", False), ("auto", "if_needed")])
def test_the_mode_is_that_of_requests_that_name_none(tiny_folder, mode, thinks):
    found = options(f"checkpoint={tiny_folder}", f"mode={mode}")
    assert json.loads(found["--default-chat-template-kwargs"]) == {"thinking": thinks}
    assert json.loads(found["--override-generation-config"]) == {"temperature": 0.0}
    assert found["--model"] == str(tiny_folder) and found["--served-model-name"] == tiny_folder.name
    assert found["--host"] == "127.0.0.1"  # nothing listens beyond loopback without an explicit address


def test_mode_auto_is_refused_where_the_template_would_take_it_for_thinking(tiny, tmp_path):
    save_model(tmp_path / "m", *tiny)
    template = tmp_path / "m" / "chat_template.jinja"
    template.write_text(template.read_text().replace("thinking == 'if_needed'", "false"))
    with pytest.raises(ValueError, match="mode: auto expects a chat template that knows it"):
        options(f"checkpoint={tmp_path / 'm'}", "mode=auto")
    template.unlink()
    (tmp_path / "m" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="mode: auto expects a chat template that knows it"):
        options(f"checkpoint={tmp_path / 'm'}", "mode=auto")
    with pytest.raises(ValueError, match="think, direct, auto"):
        options(f"checkpoint={tmp_path / 'm'}", "mode=sometimes")


def test_numbers_are_computed_in_the_type_that_they_are_stored_in(tiny, tiny_folder, tmp_path):
    save_model(tmp_path / "half", *tiny, dtype="bfloat16")
    assert options(f"checkpoint={tiny_folder}")["--dtype"] == "float32"
    assert options(f"checkpoint={tmp_path / 'half'}")["--dtype"] == "bfloat16"
    assert options(f"checkpoint={tmp_path / 'half'}", "dtype=float32")["--dtype"] == "float32"


def test_a_temperature_of_the_folder_is_kept_unless_another_is_asked_for(tiny, tmp_path):
    save_model(tmp_path / "m", *tiny)
    (tmp_path / "m" / "manifest.json").unlink()
    (tmp_path / "m" / "generation_config.json").write_text('{"temperature": 0.7}')
    assert "--override-generation-config" not in options(f"checkpoint={tmp_path / 'm'}")
    found = options(f"checkpoint={tmp_path / 'm'}", "temperature=0.2")
    assert json.loads(found["--override-generation-config"]) == {"temperature": 0.2}


def test_memory_is_one_gib_on_a_cpu_and_what_is_left_on_a_gpu(tiny_folder):
    on_cpu, on_gpu = (options(f"checkpoint={tiny_folder}", on_gpu=on_gpu) for on_gpu in (False, True))
    assert on_cpu["--kv-cache-memory-bytes"] == str(2**30) and "--enforce-eager" in on_cpu
    assert "--kv-cache-memory-bytes" not in on_gpu and on_gpu["--gpu-memory-utilization"] == "0.9"
    assert options(f"checkpoint={tiny_folder}", "kv_cache_gib=2", on_gpu=True)["--kv-cache-memory-bytes"] == str(2**31)


def test_any_other_model_is_served_by_its_own_template(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    assert not is_ours(tmp_path)
    found = options(f"checkpoint={tmp_path}", "name=judge", "arguments=[--max-num-seqs,'8']", ours=False)
    assert "--default-chat-template-kwargs" not in found and found["--dtype"] == "auto"
    assert found["--served-model-name"] == "judge" and found["--max-num-seqs"] == "8"


class TestStart:
    @pytest.fixture
    def started(self, monkeypatch):
        """What the process would become."""
        calls: list[tuple[list[str], dict[str, str]]] = []
        monkeypatch.setattr(os, "execve", lambda program, words, variables: calls.append((words, variables)))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        return calls

    @pytest.fixture
    def port(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    def serve(self, *overrides: str) -> None:
        command_line.serve(*load_config("serve", list(overrides)))

    def test_the_key_is_in_the_environment_and_nowhere_else(self, tiny_folder, started, port, monkeypatch, capsys):
        monkeypatch.setenv("MY_KEY", "sesame-open")
        self.serve(f"checkpoint={tiny_folder}", f"port={port}", "api_key_env=MY_KEY")
        ((words, variables),) = started
        assert words[0] == sys.executable and variables["VLLM_API_KEY"] == "sesame-open"
        assert "sesame-open" not in " ".join(words) + capsys.readouterr().out

    def test_a_key_that_is_not_there_is_refused(self, tiny_folder, started, port, monkeypatch):
        monkeypatch.delenv("MY_KEY", raising=False)
        with pytest.raises(ValueError, match="api_key_env: expected a key in the environment variable MY_KEY"):
            self.serve(f"checkpoint={tiny_folder}", f"port={port}", "api_key_env=MY_KEY")

    def test_a_port_that_is_taken_is_refused(self, tiny_folder, started):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen(1)
            port = other.getsockname()[1]
            with pytest.raises(ValueError, match=rf"port: expected a free port, found {port} in use at 127\.0\.0\.1"):
                self.serve(f"checkpoint={tiny_folder}", f"port={port}")
        assert not started

    def test_an_address_of_another_host_is_refused(self, tiny_folder, started, port):
        with pytest.raises(ValueError, match=r"host: expected an address to listen at, found 192\.0\.2\.77"):
            self.serve(f"checkpoint={tiny_folder}", f"port={port}", "host=192.0.2.77")

    def test_an_open_address_without_a_key_is_said(self, tiny_folder, started, port, capsys):
        self.serve(f"checkpoint={tiny_folder}", f"port={port}", "host=0.0.0.0")
        assert "lets other hosts ask, without a key" in capsys.readouterr().err and len(started) == 1

    def test_a_damaged_folder_is_refused(self, tiny, tmp_path, started, port):
        save_model(tmp_path / "m", *tiny)
        (tmp_path / "m" / "model.safetensors").write_bytes(b"0" * 100)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            self.serve(f"checkpoint={tmp_path / 'm'}", f"port={port}")
        assert not started

    def test_a_machine_without_vllm_is_told_how_to_get_it(self, tiny_folder, port, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            ModuleNotFoundError, match=r"serving needs vLLM, found none; pip install 'sailvl2-rl\[vllm\]'"
        ):
            self.serve(f"checkpoint={tiny_folder}", f"port={port}")

    def test_a_folder_without_a_model_is_refused(self, tmp_path, started):
        for folder in (tmp_path, tmp_path / "gone"):
            with pytest.raises(ValueError, match=r"expected a (checkpoint )?folder"):
                self.serve(f"checkpoint={folder}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint", ""),
        ("mode", "thinking"),
        ("host", "a b"),
        ("host", "-x"),
        ("name", "--x"),
        ("port", 0),
        ("port", 70000),
        ("dtype", "int8"),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("context", -1),
        ("tensor_parallel", 0),
        ("gpu_memory_utilization", 1.5),
        ("api_key_env", "sk-123 456"),
        ("arguments", ["--port", "1"]),
        ("arguments", ["--api_key=x"]),
    ],
)
def test_settings_that_cannot_be_used_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        ServeConfig(**{"checkpoint": "c", key: value})
