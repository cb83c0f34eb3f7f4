"""The way into every sampler: a request is checked and gets a handle."""

from rollouts.config import RolloutConfig
from rollouts.rollout import NO_WEIGHTS, RolloutRequest


class Intake:
    """Checks requests against a sampler's limits and numbers them."""

    def __init__(self, config: RolloutConfig) -> None:
        self._config = config
        self._next_handle = 0

    def accept(self, request: RolloutRequest, version: int) -> int:
        """Return a new handle. `ValueError` for a prompt beyond the limits, `RuntimeError` without weights."""
        self._config.check_length(request.prompt_id, len(request.prompt_ids))
        self._config.check_images(request.prompt_id, len(request.images))
        require_weights(version)
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        return handle


def require_weights(version: int) -> None:
    """Raise `RuntimeError` unless a sampler of this policy version holds weights."""
    if version == NO_WEIGHTS:
        raise RuntimeError(
            "sampling: expected weights of one policy version, found none or an unfinished update; "
            "call load_weights before the first request, and again after an update that failed"
        )
