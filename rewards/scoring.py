"""Many claims, few processes: what is easy is decided here, the rest once per distinct claim in the pool."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rewards.pool import ScoringPool
from rewards.result import Claim, Outcome, Status, Unscorable
from rewards.verifiers.registry import UNDECIDED, decide_quickly

_MAX_VERDICTS = 100_000


class Scorer:
    """Verdicts of a pool, with a bounded memory of those that were reached (never of failures)."""

    def __init__(self, pool: ScoringPool) -> None:
        self._pool = pool
        self._verdicts: OrderedDict[str, Outcome] = OrderedDict()

    def score(self, verifier: str, claims: Sequence[Claim], options: Mapping[str, Any]) -> list[Outcome]:
        """One outcome per claim, in order."""
        outcomes = [_quick(verifier, claim, options) for claim in claims]
        waiting: dict[str, list[int]] = {}
        for i, outcome in enumerate(outcomes):
            if outcome is None:
                key = json.dumps([verifier, options, asdict(claims[i])], sort_keys=True, default=repr)
                waiting.setdefault(key, []).append(i)
        unknown = [key for key in waiting if key not in self._verdicts]
        tasks = [
            {
                "kind": "verify",
                "verifier": verifier,
                "claim": asdict(claims[waiting[key][0]]),
                "options": dict(options),
            }
            for key in unknown
        ]
        fresh = dict(zip(unknown, self._pool.run(tasks), strict=True))
        for key, places in waiting.items():
            outcome = fresh[key] if key in fresh else self._verdicts[key]
            for i in places:
                outcomes[i] = outcome
        # A failure may be the machine's: it is asked again when the claim comes again.
        self._verdicts |= {key: outcome for key, outcome in fresh.items() if outcome.status is Status.ok}
        while len(self._verdicts) > _MAX_VERDICTS:
            self._verdicts.popitem(last=False)
        return [outcome for outcome in outcomes if outcome is not None]


def _quick(verifier: str, claim: Claim, options: Mapping[str, Any]) -> Outcome | None:
    try:
        value = decide_quickly(verifier, claim, options)
    except Unscorable as error:
        return Outcome(None, Status.unscorable, str(error))
    return None if value is UNDECIDED else Outcome(value)
