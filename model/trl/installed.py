"""Whether TRL is there. Free of TRL and of torch, so that a command can be refused before the heavy imports."""

import importlib.util


def require_trl() -> None:
    """`ValueError` unless TRL is installed."""
    if importlib.util.find_spec("trl") is None:
        raise ValueError("trainer=trl: expected the package trl, found none; pip install 'sailvl2-rl[trl]'")
