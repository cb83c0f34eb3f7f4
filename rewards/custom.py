"""Loading a user's reward function from FILE.py:NAME."""

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path


@cache
def load_function(spec: str) -> Callable:
    """The function NAME of FILE.py. `ValueError` naming the file, what was expected and what it defines."""
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"reward.functions: {spec!r}: expected a Python file at {path.resolve()}, found none")
    module_spec = importlib.util.spec_from_file_location(f"custom_reward_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"reward.functions: {spec!r}: expected a .py file, found {path.name}")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"reward.functions: {spec!r}: importing {path} failed: {error!r}") from error
    function = getattr(module, name, None)
    if not callable(function):
        defined = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ValueError(f"reward.functions: {spec!r}: expected a function {name!r} in {path}, found {defined}")
    return function
