"""Claims in, outcomes out: what is cheap is decided here, what is known is remembered, the rest goes to the pool."""

import asyncio
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.result import Claim, Outcome, Status, Unscorable
from rewards.sandbox.pool import ScoringPool
from rewards.verifiers.registry import UNDECIDED, check_options, decide_quickly

MAX_VERDICTS = 100_000  # of some 200 bytes each
MAX_CHARACTERS = 10_000_000
"""What a worker is given: handing over more takes so long that it would hold up the deadlines of other tasks."""

_READS_ANSWER_ONLY = frozenset({"math"})
"""Their verdict is a function of answer, reference and options: other completions with the same answer share it."""


class Scorer:
    """Thread-safe. The pool stays the caller's to close."""

    def __init__(self, pool: ScoringPool, max_verdicts: int = MAX_VERDICTS) -> None:
        self._pool = pool
        self._max_verdicts = max_verdicts
        self._verdicts: OrderedDict[bytes, Any] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def score(self, verifier: str, claims: Sequence[Claim], options: Mapping[str, Any] | None = None) -> list[Outcome]:
        """One outcome per claim, in order. `ValueError` for an unknown verifier or option, before all else."""
        batch = _Batch(self, verifier, claims, options or {})
        return batch.outcomes(self._pool.run(batch.tasks))

    async def score_async(
        self, verifier: str, claims: Sequence[Claim], options: Mapping[str, Any] | None = None
    ) -> list[Outcome]:
        """As `score`, without blocking the event loop."""
        batch = await asyncio.to_thread(_Batch, self, verifier, claims, options or {})
        return batch.outcomes(await self._pool.run_async(batch.tasks))

    def recall(self, key: bytes) -> Outcome | None:
        with self._lock:
            if key not in self._verdicts:
                return None
            self._verdicts.move_to_end(key)
            return Outcome(self._verdicts[key])

    def remember(self, key: bytes, outcome: Outcome) -> None:
        """Verdicts only: a failure may be the machine's, and is tried again when the claim comes again."""
        if outcome.status is not Status.ok:
            return
        with self._lock:
            self._verdicts[key] = outcome.value
            self._verdicts.move_to_end(key)
            while len(self._verdicts) > self._max_verdicts:
                self._verdicts.popitem(last=False)


class _Batch:
    """Claims of one call, and what of them is left to do: `tasks`."""

    def __init__(self, scorer: Scorer, verifier: str, claims: Sequence[Claim], options: Mapping[str, Any]) -> None:
        check_options(verifier, options)
        self._scorer = scorer
        self._decided: list[Outcome | bytes] = []  # the outcome, or the key of the task that will give it
        self.tasks: list[dict[str, Any]] = []
        self._keys: dict[bytes, None] = {}
        for claim in claims:
            self._decided.append(self._decide(verifier, claim, options))

    def outcomes(self, results: Sequence[Outcome]) -> list[Outcome]:
        fresh = dict(zip(self._keys, results, strict=True))
        for key, outcome in fresh.items():
            self._scorer.remember(key, outcome)
        return [fresh[entry] if isinstance(entry, bytes) else entry for entry in self._decided]

    def _decide(self, verifier: str, claim: Claim, options: Mapping[str, Any]) -> Outcome | bytes:
        try:
            quick = decide_quickly(verifier, claim, options)
        except Unscorable as error:
            return Outcome(None, Status.unscorable, f"refused: {error}")
        except Exception:  # the same in a worker is an outcome with a traceback
            quick = UNDECIDED
        if quick is not UNDECIDED:
            return Outcome(quick)
        if verifier in _READS_ANSWER_ONLY:
            claim = Claim("", claim.answer, claim.reference)
        size = len(claim.completion) + len(claim.answer or "")
        if size > MAX_CHARACTERS:
            reason = f"refused: expected at most {MAX_CHARACTERS} characters to judge, found {size}"
            return Outcome(None, Status.unscorable, reason)
        task = {"kind": "verify", "verifier": verifier, "claim": _plain(claim), "options": dict(options)}
        try:
            key = hashlib.blake2b(json.dumps(task, sort_keys=True).encode(), digest_size=16).digest()
        except (TypeError, ValueError, RecursionError) as error:
            return Outcome(None, Status.unscorable, f"error: the claim is not plain JSON data: {error}")
        known = self._scorer.recall(key)
        if known is not None:
            return known
        if key not in self._keys:
            self._keys[key] = None
            self.tasks.append(task)
        return key


def _plain(claim: Claim) -> dict[str, Any]:
    return {**vars(claim), "columns": dict(claim.columns)}
