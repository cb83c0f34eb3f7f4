"""The settings of `python -m rlhf.serve`."""

import re
from dataclasses import dataclass, field

from model.interface import Mode
from model.json_values import member


@dataclass
class ServeConfig:
    checkpoint: str = ""
    """folder of the model to serve: a SAIL-VL2 model, or any other that vLLM knows, such as a judge"""
    mode: Mode = Mode.think
    """the mode of requests that name none: think adds the published instruction to the last question, direct does not,
    auto adds ours, by which the model judges first whether to think; a model that is no SAIL-VL2 has no modes"""
    host: str = "127.0.0.1"
    """address to listen at; 0.0.0.0 lets other hosts in"""
    port: int = 8000
    """port to listen at"""
    name: str = ""
    """name of the model for clients; empty: that of its folder"""
    api_key_env: str = ""
    """environment variable that holds a key which clients must send; empty: none is asked for"""
    temperature: float | None = None
    """temperature of requests that name none; null: that of generation_config.json, and 0 where it has none"""
    dtype: str = "keep"
    """number type to compute in: keep (that of the weights), float32, bfloat16 or float16"""
    context: int = 0
    """most tokens of a prompt and its answer together; 0: the model's"""
    max_images: int = 16
    """most images of a request"""
    tensor_parallel: int = 1
    """GPUs that the model is spread over"""
    gpu_memory_utilization: float = 0.9
    """share of a GPU's memory that vLLM takes"""
    kv_cache_gib: float = 0.0
    """memory for keys and values; 0: on a GPU what gpu_memory_utilization leaves, on a CPU 1 GiB"""
    arguments: list[str] = field(default_factory=list)
    """further options of vLLM's server, as on its command line: ["--max-num-seqs", "64"]"""

    def __post_init__(self) -> None:
        self.mode = member(Mode, self.mode, "mode")
        if not self.checkpoint:
            raise ValueError("checkpoint: expected the folder of a model, found nothing")
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype: expected {' or '.join(_DTYPES)}, found {self.dtype!r:.80}")
        if not re.fullmatch(r"[\w:][\w.:-]*", self.host):
            raise ValueError(f"host: expected a name or an address, such as 127.0.0.1, found {self.host!r:.80}")
        if self.name.startswith("-"):
            raise ValueError(f"name: expected one that does not begin with -, found {self.name!r:.80}")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: expected 1 to 65535, found {self.port}")
        if self.api_key_env and not (self.api_key_env.isascii() and self.api_key_env.isidentifier()):
            raise ValueError("api_key_env: expected the name of an environment variable, found something else")
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected a number from 0 on, or null, found {self.temperature}")
        for name, least in (("context", 0), ("max_images", 0), ("tensor_parallel", 1), ("kv_cache_gib", 0)):
            if not least <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization: expected a share above 0, at most 1, found {self.gpu_memory_utilization}"
            )
        taken = {argument.partition("=")[0].replace("_", "-") for argument in self.arguments} & set(_OWN_OPTIONS)
        if taken:
            option = sorted(taken)[0]
            raise ValueError(f"arguments: {option} is a key of its own: {_OWN_OPTIONS[option]}")


_DTYPES = ("keep", "float32", "bfloat16", "float16")
_OWN_OPTIONS = {
    "--model": "checkpoint",
    "--served-model-name": "name",
    "--host": "host",
    "--port": "port",
    "--api-key": "api_key_env",
    "--dtype": "dtype",
    "--max-model-len": "context",
    "--limit-mm-per-prompt": "max_images",
    "--tensor-parallel-size": "tensor_parallel",
    "--gpu-memory-utilization": "gpu_memory_utilization",
    "--kv-cache-memory-bytes": "kv_cache_gib",
    "--default-chat-template-kwargs": "mode",
    "--override-generation-config": "temperature",
}
"""Option of vLLM's server -> the key that sets it."""
