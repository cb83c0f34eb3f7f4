"""Claims in, outcomes out: cheap claims are decided here, known verdicts are remembered, the rest goes to the pool."""

import asyncio
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

from rewards.result import Claim, Options, Outcome, Status, Unscorable
from rewards.sandbox.pool import ScoringPool
from rewards.sandbox.tasks import Verify
from rewards.verifiers.registry import UNDECIDED, Undecided, check_options, decide_quickly

MAX_VERDICTS = 100_000  # a remembered verdict takes some 200 bytes
MAX_CHARACTERS = 10_000_000
"""Limit for one claim: handing over more to a scorer process takes so long that it would hold up the deadlines of other
tasks."""

_READS_ANSWER_ONLY = frozenset({"math"})
"""Verifiers whose verdict is a function of answer, reference and options: completions with the same answer share it."""


class Scorer:
    """Scores claims, from any thread. The caller closes the pool."""

    def __init__(self, pool: ScoringPool, max_verdicts: int = MAX_VERDICTS) -> None:
        self._pool = pool
        self._max_verdicts = max_verdicts
        self._verdicts: OrderedDict[bytes, float | None] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def score(self, verifier: str, claims: Sequence[Claim], options: Options | None = None) -> list[Outcome[float]]:
        """Return one outcome per claim, in order. `ValueError` for an unknown verifier or option, before all else."""
        batch = _Batch(self, verifier, claims, options or {})
        return batch.outcomes(self._pool.run(batch.tasks))

    async def score_async(
        self, verifier: str, claims: Sequence[Claim], options: Options | None = None
    ) -> list[Outcome[float]]:
        """Do what `score` does, without blocking the event loop."""
        batch = await asyncio.to_thread(_Batch, self, verifier, claims, options or {})
        return batch.outcomes(await self._pool.run_async(batch.tasks))

    def recall(self, key: bytes) -> Outcome[float] | None:
        with self._lock:
            if key not in self._verdicts:
                return None
            self._verdicts.move_to_end(key)
            return Outcome(self._verdicts[key])

    def remember(self, key: bytes, outcome: Outcome[float]) -> None:
        """Keep a verdict. A failure is not kept: it may be the machine's, and the claim is tried again."""
        if outcome.status is not Status.ok:
            return
        with self._lock:
            self._verdicts[key] = outcome.value
            self._verdicts.move_to_end(key)
            while len(self._verdicts) > self._max_verdicts:
                self._verdicts.popitem(last=False)


class _Batch:
    """The claims of one call; `tasks` are those that the pool must judge."""

    def __init__(self, scorer: Scorer, verifier: str, claims: Sequence[Claim], options: Options) -> None:
        check_options(verifier, options)
        self._scorer = scorer
        self._decided: list[Outcome[float] | bytes] = []  # the outcome, or the key of the task that will give it
        self.tasks: list[Verify] = []
        self._keys: dict[bytes, None] = {}
        for claim in claims:
            self._decided.append(self._decide(verifier, claim, options))

    def outcomes(self, results: Sequence[Outcome[float]]) -> list[Outcome[float]]:
        fresh = dict(zip(self._keys, results, strict=True))
        for key, outcome in fresh.items():
            self._scorer.remember(key, outcome)
        return [fresh[entry] if isinstance(entry, bytes) else entry for entry in self._decided]

    def _decide(self, verifier: str, claim: Claim, options: Options) -> Outcome[float] | bytes:
        try:
            quick = decide_quickly(verifier, claim, options)
        except Unscorable as error:
            return Outcome(None, Status.unscorable, f"refused: {error}")
        except Exception:  # the same in a scorer process is an outcome with a traceback
            quick = UNDECIDED
        if not isinstance(quick, Undecided):
            return Outcome(quick)
        if verifier in _READS_ANSWER_ONLY:
            claim = Claim("", claim.answer, claim.reference)
        size = len(claim.completion) + len(claim.answer or "")
        if size > MAX_CHARACTERS:
            reason = f"refused: expected at most {MAX_CHARACTERS} characters to judge, found {size}"
            return Outcome(None, Status.unscorable, reason)
        task = Verify(verifier, claim, options)
        try:
            key = hashlib.blake2b(task.encoded, digest_size=16).digest()
        except (TypeError, ValueError, RecursionError) as error:
            return Outcome(None, Status.unscorable, f"error: the claim is not plain JSON data: {error}")
        known = self._scorer.recall(key)
        if known is not None:
            return known
        if key not in self._keys:
            self._keys[key] = None
            self.tasks.append(task)
        return key
