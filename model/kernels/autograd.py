"""The context that torch hands to the forward and backward of an `autograd.Function`."""

from typing import Any

FunctionContext = Any
"""torch's context, on which a function keeps whatever its backward needs: it takes attributes of any name."""
