"""A model folder behind HTTP: `python -m rlhf.serve checkpoint=DIR mode=think`.

vLLM's server, which speaks OpenAI's protocol, with our plugin. Clients that know nothing of thinking get the mode of
the command; `python -m model.chat endpoint=http://127.0.0.1:8000/v1` and every OpenAI client can ask it. It also serves
a judge for rewards.
"""

import os
import shlex
import sys
from pathlib import Path

from conf.cli import launch
from rlhf.serve.config import ServeConfig

_LOOPBACK = ("127.", "localhost", "::1")


def serve(config: ServeConfig, resolved: str) -> None:
    """Become the server; it ends with SIGTERM or Ctrl-C. `ValueError` for a folder that cannot be served, and an
    address that is taken; `ModuleNotFoundError` without vLLM."""
    from rlhf.serve.command import environment, is_ours, require_free, require_vllm, server_arguments

    ours = is_ours(Path(config.checkpoint))
    require_vllm()
    variables = environment(config)
    require_free(config.host, config.port)
    import torch

    arguments = server_arguments(config, ours, torch.cuda.is_available())
    address = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{config.port}/v1"
    if not ours:
        print("no SAIL-VL2 model: its own chat template decides, and mode means nothing")
    if not config.host.startswith(_LOOPBACK) and not config.api_key_env:
        print(
            f"host: {config.host} lets other hosts ask, without a key; api_key_env=NAME asks for one", file=sys.stderr
        )
    print(f"python {shlex.join(arguments)}")
    print(f"serves at {address} once it has loaded the model; ask it: python -m model.chat endpoint={address}")
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *arguments], variables)


def main() -> int:
    return launch("serve", ServeConfig, serve)


if __name__ == "__main__":
    sys.exit(main())
