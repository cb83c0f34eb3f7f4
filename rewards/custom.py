"""Users' reward functions are found, called in the style that they are written in, and what they return is checked.

The names of the parameters tell the style:
- native: `fn(completion)` gets one `RewardInput`, `fn(batch)` the list of those of one prompt; numbers come back;
- TRL: `fn(prompts, completions, completion_ids, **columns)`, with `trainer_state` and `log_metric` where asked for;
  a list comes back in which None says that the function does not apply;
- verl: `fn(data_source, solution_str, ground_truth, extra_info)`; a number or a dict with `score` comes back. With
  `fn(data_sources, solution_strs, ground_truths, extra_infos)` a list of them comes back.
Each may return `rewards.result.NOT_APPLICABLE` in place of a number, and may be a coroutine function. Settings from
`reward.options` arrive as keyword arguments. True and False count as 1 and 0.
"""

import asyncio
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set, Sized
from enum import Enum
from functools import cache
from numbers import Real
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

from rewards.measured import Measured, measuring
from rewards.result import CallResult, CallStyle, NotApplicable, Options, RewardInput, SiblingResults

ENTRY_POINTS = "sailvl2_rl.rewards"
Function = Callable[..., object]
_REFERENCE_NAMES = ("reference", "solution", "answer", "ground_truth", "label", "target")
_QUESTION_NAMES = ("question", "problem")
_ID_NAMES = ("id", "index")
_IMAGE_NAMES = ("image", "image_path")
"""Names by which TRL functions ask for what our rows have in one place; a row's own column of that name goes first."""

_MAX_SHOWN = 80


class Malformed(TypeError):
    """A function returned something that is no reward; the text names the function and the completion's index."""


class Style(Enum):
    native = "native"
    native_batch = "native_batch"
    trl = "trl"
    verl = "verl"
    verl_batch = "verl_batch"


@cache
def load_function(spec: str) -> Function:
    """Load FILE.py:NAME, package.module:NAME or the function of an entry point. `ValueError` says what was expected."""
    place, colon, name = spec.rpartition(":")
    if not colon:
        return _from_entry_point(spec)
    module = _from_file(spec, Path(place).expanduser()) if place.endswith(".py") else _from_module(spec, place)
    function = getattr(module, name, None)
    if not callable(function):
        defined = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ValueError(f"reward.functions: {spec!r}: expected a function {name!r} in {place}, found {defined}")
    style_of(function, spec)
    return function


def style_of(function: Function, spec: str = "") -> Style:
    """Tell how a function wants to be called. `ValueError` when its parameters fit no style."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward.functions: {spec!r}: expected a Python function, found {error}") from None
    if "solution_str" in parameters:
        return Style.verl
    if "solution_strs" in parameters:
        return Style.verl_batch
    if "completions" in parameters or "prompts" in parameters:
        return Style.trl
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next(iter(parameters.values()), None)
    needed = [p for p in parameters.values() if p.default is p.empty and p.kind in positional]
    if first is None or first.kind not in positional or len(needed) > 1:
        raise ValueError(
            f"reward.functions: {spec!r}: expected the parameters (completion), (batch), (prompts, completions, ...), "
            "(data_source, solution_str, ground_truth, extra_info) or (data_sources, solution_strs, ground_truths, "
            f"extra_infos), found {list(parameters)}"
        )
    return Style.native_batch if first.name == "batch" else Style.native


def describe(spec: str, options: Options | None = None) -> CallStyle:
    """Tell how to call a function, by its parameters and its attributes `timeout_seconds` and `memory_mb`.

    `ValueError` for options or limits that it cannot be called with. A function's attribute `check_options` is called
    with the options, and raises it for values that it does not take.
    """
    function = load_function(spec)
    style = style_of(function, spec)
    _check_options(spec, function, style, options or {})
    if (check := getattr(function, "check_options", None)) is not None:
        check(dict(options or {}))
    single = style in (Style.native, Style.verl) and not _is_async(function)
    return CallStyle(single, **_own_limits(spec, function))


def call_one(spec: str, item: RewardInput, options: Options, index: int = 0) -> float | None:
    """Return the number that a native or verl function gives one completion, None for `NOT_APPLICABLE`.

    Raises what the function raises, and `Malformed` where it returns something that is no number.
    """
    function = load_function(spec)
    style = style_of(function, spec)
    entry = _entry(spec, index, _await(_call(function, style, item, options)), style)
    if entry.reason:
        raise Malformed(entry.reason)
    return entry.value


def call_siblings(
    spec: str, inputs: Sequence[RewardInput], options: Options, step: int = 0, max_steps: int = 0
) -> SiblingResults:
    """Return one result per input, and what the function logged.

    Raises what the function raises when it is called once for all inputs. A coroutine function for one completion is
    called once for each, all at the same time; what it raises is that completion's result.
    """
    function = load_function(spec)
    style = style_of(function, spec)
    metrics: dict[str, list[float]] = {}
    if style in (Style.native, Style.verl):
        results, measured = _call_together(spec, function, style, inputs, options)
        name = spec.rpartition(":")[2]
        return SiblingResults(results, {f"judge/{name}/{what}": values for what, values in measured.items()})
    if style is Style.native_batch:
        values = _await(function(list(inputs), **options))
    elif style is Style.verl_batch:
        columns = _listed([_verl_arguments(item) for item in inputs])
        values = _await(function(**_understood(function, columns), **options))
    else:
        state = SimpleNamespace(global_step=step, max_steps=max_steps)
        values = _await(function(**_trl_arguments(function, inputs, options, state, metrics)))
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Sized) or _is_tensor(values):
        raise Malformed(f"{spec}: expected a list of {len(inputs)} numbers, found {_shown(values)}")
    if len(values) != len(inputs):
        raise Malformed(f"{spec}: expected {len(inputs)} numbers, one per completion, found {len(values)}")
    listed = cast(Sequence[object], values)
    return SiblingResults([_entry(spec, index, value, style) for index, value in enumerate(listed)], metrics)


def _call_together(
    spec: str, function: Function, style: Style, inputs: Sequence[RewardInput], options: Options
) -> tuple[list[CallResult], Measured]:
    """Run one coroutine per completion. One that raises is its own completion's failure. Also returns what a judge
    measured."""
    calls = [cast(Awaitable[object], _call(function, style, item, options)) for item in inputs]
    values, measured = _loop().run(_gather(calls))
    results = [
        CallResult(None, _said(value), "".join(traceback.format_exception(value)))
        if isinstance(value, Exception)
        else _entry(spec, index, value, style)
        for index, value in enumerate(values)
    ]
    return results, measured


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) and str(error) else repr(error)


def _call(function: Function, style: Style, item: RewardInput, options: Options) -> object:
    if style is Style.native:
        return function(item, **options)
    return function(**_understood(function, _verl_arguments(item)), **options)


def _is_async(function: Function) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _gather(calls: Sequence[Awaitable[object]]) -> tuple[list[object], Measured]:
    with measuring() as measured:
        return await asyncio.gather(*calls, return_exceptions=True), measured


def _await(value: object) -> object:
    async def wait(awaitable: Awaitable[object]) -> object:
        return await awaitable

    return _loop().run(wait(value)) if inspect.isawaitable(value) else value


@cache
def _loop() -> asyncio.Runner:
    """Return the one event loop of this process, because clients stay bound to the loop that first used them."""
    return asyncio.Runner()


def _entry(spec: str, index: int, value: object, style: Style) -> CallResult:
    if isinstance(value, NotApplicable) or (value is None and style is Style.trl):
        return CallResult(None)
    if style in (Style.verl, Style.verl_batch) and isinstance(value, Mapping):
        value = value.get("score", value)
    if _is_bool(value):
        value = 1.0 if value else 0.0
    checked = _checked(value)
    if isinstance(checked, str):
        return CallResult(None, f"{spec}: completion {index}: {checked}")
    return CallResult(checked)


def _checked(value: object) -> float | str:
    """Turn a returned value into a number, or say what is wrong with it."""
    if isinstance(value, Real) and not isinstance(value, bool) and not _is_tensor(value):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    return f"expected a finite number, found {_shown(value)}"


def _is_bool(value: object) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # by name, so that numpy need not be imported for its type


def _is_tensor(value: object) -> bool:
    return type(value).__module__.partition(".")[0] in ("torch", "jax", "tensorflow")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({type(value).__name__})"


def _trl_arguments(
    function: Function,
    inputs: Sequence[RewardInput],
    options: Options,
    state: SimpleNamespace,
    metrics: dict[str, list[float]],
) -> dict[str, object]:
    """Return the arguments that TRL passes for conversational rows: messages in, one assistant message out, and every
    column of the row as a list under its own name."""
    given: dict[str, object] = {
        "prompts": [item.messages for item in inputs],
        "completions": [[{"role": "assistant", "content": item.completion}] for item in inputs],
        "completion_ids": [item.token_ids for item in inputs],
        "trainer_state": state,
        "log_metric": lambda name, value: _log(metrics, str(name), float(value)),
        "log_extra": lambda column, values: None,
        "images": [item.images for item in inputs],
        "reference": [item.reference for item in inputs],
    }
    for key in sorted({key for item in inputs for key in item.meta}):
        given.setdefault(key, [item.meta.get(key) for item in inputs])
    questions = [_question(item) for item in inputs]
    first_images = [next(iter(item.images), None) for item in inputs]
    ids = [item.prompt_id for item in inputs]
    by_names = (_REFERENCE_NAMES, given["reference"]), (_QUESTION_NAMES, questions), (_ID_NAMES, ids)
    for names, values in (*by_names, (_IMAGE_NAMES, first_images), (("messages",), given["prompts"])):
        for name in names:
            given.setdefault(name, values)
    return {**_understood(function, given), **options}


def _question(item: RewardInput) -> str:
    """Return the text of the last message of the user."""
    content = next((message["content"] for message in reversed(item.messages) if message.get("role") == "user"), "")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


def _log(metrics: dict[str, list[float]], name: str, value: float) -> None:
    if math.isfinite(value):  # a metric may be NaN, as the mean of nothing is; that is no reason to lose a reward
        metrics.setdefault(name, []).append(value)


def _understood(function: Function, given: dict[str, object]) -> dict[str, object]:
    """Return those of `given` that the function has parameters for: all, where it takes any keyword."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


def _verl_arguments(item: RewardInput) -> dict[str, object]:
    """Return the arguments that verl passes. `extra_info` holds the row's column of that name and its other columns.

    A row in verl's own layout gives its ground truth as it stands there, whatever kind of value it is.
    """
    own = item.meta.get("reward_model")
    truth = own.get("ground_truth") if isinstance(own, Mapping) else None
    extra = {**item.meta, "messages": item.messages, "images": item.images, "prompt_id": item.prompt_id}
    if isinstance(column := extra.pop("extra_info", None), Mapping):
        extra |= column
    return {
        "data_source": item.meta.get("data_source", item.meta.get("dataset", "")),
        "solution_str": item.completion,
        "ground_truth": item.reference if truth is None else truth,
        "extra_info": extra,
    }


def _listed(calls: Sequence[dict[str, object]]) -> dict[str, object]:
    """Return verl's arguments of several completions as those of one call: `solution_strs` for `solution_str`."""
    return {f"{name}s": [call[name] for call in calls] for name in calls[0]}


def _from_entry_point(name: str) -> Function:
    found = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in found:
        raise ValueError(
            f"reward.functions: {name!r}: expected FILE.py:NAME, package.module:NAME or an entry point of the group "
            f"{ENTRY_POINTS}, found the entry points {sorted(found)}"
        )
    function = found[name].load()
    style_of(function, name)
    return function


def _check_options(spec: str, function: Function, style: Style, options: Options) -> None:
    signature = inspect.signature(function)
    try:
        if style in (Style.native, Style.native_batch):
            signature.bind(None, **options)
        else:
            signature.bind_partial(**options)
    except TypeError as error:
        raise ValueError(
            f"reward.options: {spec!r} cannot be called with {sorted(options)}: {error}; its parameters are "
            f"{list(signature.parameters)}"
        ) from None


def _own_limits(spec: str, function: Function) -> dict[str, float]:
    limits = {}
    for name, least in (("timeout_seconds", "more than 0"), ("memory_mb", "0 (no limit) or more")):
        value = getattr(function, name, None)
        if value is None:
            continue
        good = isinstance(value, int | float) and math.isfinite(value)
        if not good or value < 0 or (value == 0 and name == "timeout_seconds"):
            raise ValueError(f"reward.functions: {spec!r}: attribute {name}: expected {least}, found {value!r}")
        limits[name] = float(value)
    return limits


def _let_import(folder: Path) -> None:
    """Put a folder at the end of the module path, so that a user's own json.py hides nothing."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _from_module(spec: str, module: str) -> ModuleType:
    _let_import(Path.cwd())
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise ValueError(f"reward.functions: {spec!r}: importing {module} failed: {error!r}") from error


def _from_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"reward.functions: {spec!r}: expected a Python file at {path.resolve()}, found none")
    module_spec = importlib.util.spec_from_file_location(f"custom_reward_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"reward.functions: {spec!r}: expected a .py file, found {path.name}")
    _let_import(path.resolve().parent)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"reward.functions: {spec!r}: importing {path} failed: {error!r}") from error
    return module
