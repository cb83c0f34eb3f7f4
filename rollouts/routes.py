"""Routes: the experts that a sampler's MoE took for every token, so that the trainer can take the same ones."""

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Routes:
    """The experts of one rollout's tokens. The last token of a completion was never fed, so nothing is known of it."""

    prompt: np.ndarray  # [prompt tokens, L, k], one array for all completions of a group
    completion: np.ndarray  # [completion tokens - 1, L, k]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Routes)
            and np.array_equal(self.prompt, other.prompt)
            and np.array_equal(self.completion, other.completion)
        )

    def problem(self, num_prompt_tokens: int, num_completion_tokens: int) -> str:
        """Say what does not fit a rollout of so many tokens; empty if all fits."""
        shapes = self.prompt.shape, self.completion.shape
        if [len(shape) for shape in shapes] != [3, 3] or shapes[0][1:] != shapes[1][1:]:
            return f"expected routes [tokens, layers, experts per token], found {shapes[0]} and {shapes[1]}"
        if (shapes[0][0], shapes[1][0]) != (num_prompt_tokens, num_completion_tokens - 1):
            return (
                f"expected routes of {num_prompt_tokens} + {num_completion_tokens - 1} tokens, found {shapes[0][0]} + "
                f"{shapes[1][0]}"
            )
        return ""


def compact_dtype(num_experts: int) -> type[np.uint8] | type[np.int16]:
    """Return the smallest integer type that holds the number of every expert."""
    return np.uint8 if num_experts <= 2**8 else np.int16


def stored_array(array: np.ndarray) -> dict[str, object]:
    """Return an array of routes as JSON data, compressed."""
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 1)).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def restored_array(record: Mapping[str, object]) -> np.ndarray:
    """Return the array that `stored_array` was given."""
    data = zlib.decompress(base64.b64decode(str(record["data"])))
    shape = record["shape"]
    assert isinstance(shape, list)
    return np.frombuffer(data, np.dtype(str(record["dtype"]))).reshape(shape)
