"""Settings of the reward: its parts, how they are combined, and their limits."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from rewards.answers import AnswerRule

_Choice = TypeVar("_Choice", bound=Enum)
OUTSIDE = {"outside": True}
"""Field metadata of a setting that is no part of what a run is: a path, or what changes no number."""


class Combine(Enum):
    """`weighted_sum` of the parts; the `product` of those that earn; or `product_plus_format`, SAIL-RL's reward (arXiv
    2511.02280): format_weight for the format, and the rest of 1 for the product of the other parts that earn. A product
    ignores the weights of its parts, but 0 leaves a part out; penalties are added to it with their weights."""

    weighted_sum = "weighted_sum"
    product = "product"
    product_plus_format = "product_plus_format"


class WeightCheck(Enum):
    """`one`: weights of what earns must sum to 1, so that a reward is a share; penalties (negative weights, overlong,
    repetition) do not count. `free`: any."""

    one = "one"
    free = "free"


@dataclass
class RewardConfig:
    verifier: str = "math"
    """judges the answer part; `python -m rewards.score --help` lists them. A function, named as in `functions`, may do
    so too: rewards.judged_answer:agreement asks a language model. none: no answer and no format part, and rows need no
    reference; the reward is what `functions` and `parts` say"""
    datasets: dict[str, Any] = field(default_factory=dict)
    """differences for rows of a data set (column `dataset` or `data_source`): the verifier of the answer part, or
    {verifier: NAME, weights: {PART: WEIGHT}}; a part of weight 0 there is not asked about its rows,
    not as a gate either"""
    answer_rules: list[AnswerRule] = field(default_factory=lambda: [AnswerRule.boxed])
    """where the answer stands in a completion, tried in this order"""
    answer_weight: float = 0.9
    """weight of the answer part: what the verifier says (the report states no weights)"""
    format_weight: float = 0.1
    """weight of the format part (1 for exactly one think block followed by one boxed answer, else 0)"""
    parts: dict[str, float] = field(default_factory=dict)
    """further verifiers as parts of their own, with their weights, for example {language: 0.1, repetition: 0.2}"""
    functions: list[str] = field(default_factory=list, metadata=OUTSIDE)
    """own reward functions, each FILE.py:NAME, package.module:NAME or the name of an entry point (docs/rewards.md);
    from Python also the function itself"""
    function_weights: list[float] = field(default_factory=list)
    """one weight per function; empty: 0.1 each, and the others are scaled down by as much. With verifier=none the
    functions share what `parts` leave"""
    weight_check: WeightCheck = WeightCheck.one
    """one: weights of parts that earn must sum to 1"""
    combine: Combine = Combine.weighted_sum
    """how parts become one reward: a sum by weights, a product, or product_plus_format (SAIL-RL)"""
    gates: list[str] = field(default_factory=list)
    """parts that must be 1, or the reward is 0"""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """settings of verifiers and functions by name, for example {numeric: {absolute: 0.01}}"""
    timeout_seconds: float = 5.0
    """deadline of one verifier or function call in its scorer process; a call past it is unscorable"""
    num_workers: int = field(default=1, metadata=OUTSIDE)
    """scorer processes for symbolic answers and own functions; started when first needed"""
    max_unscorable_share: float = field(default=0.02, metadata=OUTSIDE)
    """the run stops when more than this share of the last 1,000 completions (at least 200 seen) is unscorable"""

    def __post_init__(self) -> None:
        self.answer_rules = [_member(AnswerRule, one, "reward.answer_rules") for one in self.answer_rules]
        self.weight_check = _member(WeightCheck, self.weight_check, "reward.weight_check")
        self.combine = _member(Combine, self.combine, "reward.combine")
        self.functions = [named_function(function) for function in self.functions]
        if self.function_weights and len(self.function_weights) != len(self.functions):
            raise ValueError(
                f"reward.function_weights: expected {len(self.functions)} weights (one per function) or none, "
                f"found {len(self.function_weights)}"
            )
        for function in [*self.functions, *self.answer_functions]:
            path, colon, name = function.rpartition(":")
            if not name.isidentifier() or bool(colon) != bool(path):
                raise ValueError(
                    f"{self.key_of(function)}: expected FILE.py:NAME, package.module:NAME or the name of an entry "
                    f"point, found {function!r}"
                )
        _refuse_secrets("reward.options", self.options)
        if not self.answer_rules:
            raise ValueError("reward.answer_rules: expected at least one rule, found none")
        if self.datasets and not self.has_answers:
            raise ValueError(
                f"reward.datasets: expected none with reward.verifier={NO_VERIFIER}, found {self.datasets}; name a "
                "verifier for the other rows"
            )
        names = [*self._own_parts, *self.parts, *self.function_names]
        for spec in self.answer_functions:
            name = spec.rpartition(":")[2]
            others = [one for one in [*self.functions, *self.answer_functions] if one.rpartition(":")[2] == name]
            if name in {*self._own_parts, *self.parts, *self.verifiers} or set(others) != {spec}:
                raise ValueError(
                    f"{self.key_of(spec)}: the name {name!r} of {spec!r} is taken, so that reward.options.{name} would "
                    "mean both; rename the function"
                )
        for dataset, own in self._of_datasets.items():
            if unknown := [name for name in own.get("weights", {}) if name not in names]:
                raise ValueError(f"reward.datasets.{dataset}.weights: expected some of {names}, found {unknown[0]!r}")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"reward.functions: the part name {twice[0]!r} is taken; rename the function")
        if unknown := [gate for gate in self.gates if gate not in names]:
            raise ValueError(f"reward.gates: expected some of {names}, found {unknown[0]!r}")
        self._check_weights()
        if not 0.0 <= self.max_unscorable_share <= 1.0:
            raise ValueError(
                f"reward.max_unscorable_share: expected a share between 0 and 1, found {self.max_unscorable_share}"
            )
        if not 0 < self.timeout_seconds < math.inf or self.num_workers < 1:
            raise ValueError("reward.timeout_seconds, reward.num_workers: expected positive values")

    @property
    def function_names(self) -> list[str]:
        return [function.rpartition(":")[2] for function in self.functions]

    @property
    def has_answers(self) -> bool:
        """Tell whether a verifier judges answers."""
        return self.verifier != NO_VERIFIER

    def needs_reference(self, columns: Mapping[str, object]) -> bool:
        """Tell whether a row with these columns needs a reference: somebody is asked about its answers."""
        if not self.datasets:
            return self.has_answers
        return "answer" in self.weights_of(dataset_of(columns))

    @property
    def paid_parts(self) -> set[str]:
        """Return the parts that the reward depends on, by weight or as a gate."""
        weighted = [self.weights, *(self.weights_of(dataset) for dataset in self.datasets)]
        return {name for weights in weighted for name, weight in weights.items() if weight} | set(self.gates)

    @property
    def pays_answers(self) -> bool:
        """Tell whether the reward depends on the answer part."""
        return "answer" in self.paid_parts

    @property
    def weights(self) -> dict[str, float]:
        """Return the weight of every part, by name: answer, format, `parts`, `functions`."""
        own = {**self._own_parts, **self.parts}
        if self.functions and not self.function_weights:
            if not self.has_answers:
                taken = sum(weight for name, weight in self.parts.items() if _earns(name, weight))
                return {**own, **dict.fromkeys(self.function_names, max(0.0, 1.0 - taken) / len(self.functions))}
            share = _DEFAULT_FUNCTION_WEIGHT
            left = 1.0 - share * len(self.functions) if self.weight_check is WeightCheck.one else 1.0
            own = {name: weight * left if _earns(name, weight) else weight for name, weight in own.items()}
            return {**own, **dict.fromkeys(self.function_names, share)}
        return {**own, **dict(zip(self.function_names, self.function_weights, strict=True))}

    @property
    def _of_datasets(self) -> dict[str, dict[str, Any]]:
        return {name: _of_dataset(name, given) for name, given in self.datasets.items()}

    def verifier_of(self, dataset: str) -> str:
        """Return the verifier, or the function, that judges answers of a data set."""
        return self._of_datasets.get(dataset, {}).get("verifier", self.verifier)

    def weights_of(self, dataset: str) -> dict[str, float]:
        """Return the weight of every part for rows of a data set, without the parts that are not asked about them."""
        own = self._of_datasets.get(dataset, {}).get("weights", {})
        return {name: own.get(name, weight) for name, weight in self.weights.items() if own.get(name, 1.0)}

    @property
    def verifiers(self) -> set[str]:
        """Return the verifiers of answers by name, functions apart."""
        named = (
            {self.verifier, *(self.verifier_of(dataset) for dataset in self.datasets)} if self.has_answers else set()
        )
        return named - set(self.answer_functions)

    @property
    def answer_functions(self) -> list[str]:
        """Return the functions that judge answers in place of a verifier."""
        named = [self.verifier, *(self.verifier_of(dataset) for dataset in self.datasets)]
        return sorted({name for name in named if ":" in name})

    def key_of(self, function: str) -> str:
        """Return the setting that names a function."""
        if function in self.functions or function not in self.answer_functions:
            return "reward.functions"
        named = [f"reward.datasets.{name}" for name in self.datasets if self.verifier_of(name) == function]
        return "reward.verifier" if self.verifier == function else named[0]

    def multiplied(self, weights: Mapping[str, float]) -> set[str]:
        """Return those of the weighted parts that a product is made of; empty for a sum."""
        if self.combine is Combine.weighted_sum:
            return set()
        return set(earning(weights)) - ({"format"} if self.combine is Combine.product_plus_format else set())

    @property
    def _own_parts(self) -> dict[str, float]:
        return {"answer": self.answer_weight, "format": self.format_weight} if self.has_answers else {}

    def _check_weights(self) -> None:
        if self.has_answers and not self.function_weights and len(self.functions) * _DEFAULT_FUNCTION_WEIGHT >= 1:
            raise ValueError("reward.function_weights: expected weights for so many functions, found none")
        for name, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"reward: weight of {name}: expected a finite number, found {weight}")
        if not self.has_answers and not earning(self.weights):
            raise ValueError(
                f"reward.verifier: {NO_VERIFIER} leaves answers and format out, so expected reward.functions or "
                "reward.parts, found none with a positive weight"
            )
        self._check_sum("reward", self.weights)
        for dataset in self.datasets:
            self._check_sum(f"reward.datasets.{dataset}.weights", self.weights_of(dataset))

    def _check_sum(self, where: str, weights: Mapping[str, float]) -> None:
        earned = earning(weights)
        if not earned:
            raise ValueError(f"{where}: expected a part with a positive weight, penalties apart, found {dict(weights)}")
        fits = self.has_answers and 0 <= weights.get("format", 0.0) <= 1 and bool(self.multiplied(weights))
        if self.combine is Combine.product_plus_format and not fits:
            combine = "reward.combine: " if where == "reward" else f"{where}: combine="
            raise ValueError(
                f"{combine}product_plus_format expects a verifier, a weight of format from 0 to 1, and another "
                f"part with a positive weight, found {dict(weights)} with reward.verifier={self.verifier}"
            )
        total = sum(earned.values())
        if self.weight_check is WeightCheck.one and self.combine is Combine.weighted_sum and abs(total - 1.0) > 1e-6:
            raise ValueError(
                f"{where}: expected weights that sum to 1, penalties apart, found {total:g} from {earned}; "
                "change answer_weight, format_weight, parts, function_weights or weights of a data set, or set "
                "weight_check=free"
            )


NO_VERIFIER = "none"
"""The value of `reward.verifier` that says: only my own reward."""

DEFAULT_REQUESTS_PER_MINUTE = 120.0
"""Requests of a judge that a scorer process makes in a minute, where its options name no other number."""

_DEFAULT_FUNCTION_WEIGHT = 0.1
_PENALTIES = ("overlong", "repetition")  # verifiers whose values are 0 or less


_SECRET_NAME = re.compile(
    r"(.*[_-])?(api[_-]?key|password|passwd|secret|(access|auth|bearer)[_-]?token|authorization)", re.I
)
_ADDRESS_WITH_PASSWORD = re.compile(r"\s*[a-z][a-z0-9+.-]*://[^/?#\s]*@", re.I)


def _refuse_secrets(where: str, value: object) -> None:
    """`ValueError` for a setting that is a secret, which is not shown: a run writes its settings to config.yaml."""
    remedy = "put it into an environment variable, and the variable's name among the settings"
    if isinstance(value, str) and _ADDRESS_WITH_PASSWORD.match(value):
        raise ValueError(f"{where}: expected an address without a user name and password, found one with; {remedy}")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if isinstance(inner, str) and inner and _SECRET_NAME.fullmatch(str(name)):
                raise ValueError(
                    f"{where}.{name}: expected no secret, which config.yaml would show, found one; {remedy}"
                )
            _refuse_secrets(f"{where}.{name}", inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            _refuse_secrets(where, inner)


def _member(kind: type[_Choice], given: _Choice | str, name: str) -> _Choice:
    """Return the member of an enum that is meant, by itself or by its value. `ValueError` for anything else."""
    for one in kind:
        if given is one or given == one.value:
            return one
    raise ValueError(f"{name}: expected {' or '.join(str(one.value) for one in kind)}, found {given!r:.80}")


def named_function(function: object) -> str:
    """The text by which scorer processes load a function: what was given as text, or where a Python function stands.

    `ValueError` for a function that no other process can load: a lambda, one of a notebook's cell or of another
    function, a bound method, an object.
    """
    if isinstance(function, str):
        return function
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    home = sys.modules.get(module)
    if module == "__main__" or not name.isidentifier() or getattr(home, name, None) is not function:
        shown = name or type(function).__name__
        raise ValueError(
            f"reward.functions: expected a function that stands at the top of a module, found {shown} of "
            f"{module or 'no module'}; scorer processes cannot load it. Write it to a file, and import it from there, "
            "or name it 'FILE.py:NAME'"
        )
    file = getattr(home, "__file__", None) or ""
    return f"{file}:{name}" if "." not in module and file.endswith(".py") else f"{module}:{name}"


def dataset_of(columns: Mapping[str, object]) -> str:
    """Return the data set that the columns of a row name, by which `reward.datasets` finds it."""
    return str(columns.get("dataset", columns.get("data_source")))


def earning(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of the parts that can raise a reward; the others are penalties."""
    return {name: weight for name, weight in weights.items() if _earns(name, weight)}


def _of_dataset(dataset: str, given: object) -> dict[str, Any]:
    """Return what differs for a data set, as {verifier, weights}. `ValueError` for anything else."""
    if isinstance(given, str):
        return {"verifier": given}
    where = f"reward.datasets.{dataset}"
    if not isinstance(given, Mapping) or not given or not set(given) <= {"verifier", "weights"}:
        raise ValueError(
            f"{where}: expected a verifier's name or {{verifier: NAME, weights: {{PART: WEIGHT}}}}, found {given!r:.80}"
        )
    found: dict[str, Any] = {}
    if "verifier" in given:
        if not isinstance(given["verifier"], str) or given["verifier"] == NO_VERIFIER:
            raise ValueError(
                f"{where}.verifier: expected the name of a verifier, found {given['verifier']!r:.80}; "
                "weights={answer: 0} leaves its answers out"
            )
        found["verifier"] = given["verifier"]
    if "weights" in given:
        weights = given["weights"]
        if not isinstance(weights, Mapping):
            raise ValueError(f"{where}.weights: expected {{PART: WEIGHT}}, found {weights!r:.80}")
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"{where}.weights.{name}: expected a finite number, found {weight!r:.80}")
        found["weights"] = {str(name): float(weight) for name, weight in weights.items()}
    return found


def _earns(name: str, weight: float) -> bool:
    return weight > 0 and name not in _PENALTIES
