"""Refusals that every stage through TRL shares, before the heavy imports. Free of TRL and of torch."""

import importlib.util
from enum import Enum
from typing import Any

from model.lora.config import LoraConfig


def require_trl() -> None:
    """`ValueError` unless TRL is installed."""
    if importlib.util.find_spec("trl") is None:
        raise ValueError("trainer=trl: expected the package trl, found none; pip install 'sailvl2-rl[trl]'")


def refuse_adapters(adapter: object) -> None:
    """`ValueError` for an adapter: whole models are trained here."""
    if isinstance(adapter, LoraConfig):
        raise ValueError(
            "adapter: trainer=trl trains whole models here, found lora; set adapter=none, or trainer=sailvl2"
        )


def expect(field: str, found: Any, *allowed: Any) -> None:
    """`ValueError` unless a setting has one of the values that TRL's trainer has."""
    if found in allowed:
        return
    names = [str(value.value if isinstance(value, Enum) else value) for value in (*allowed, found)]
    raise ValueError(
        f"{field}: trainer=trl has {' or '.join(names[:-1])}, found {names[-1]}; set that, or trainer=sailvl2"
    )
