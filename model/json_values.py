"""JSON data as Python has it."""

from typing import Any

JsonObject = dict[str, Any]
"""An object that was read from JSON, or can be written as it: text keys, and values of any kind that JSON has."""
