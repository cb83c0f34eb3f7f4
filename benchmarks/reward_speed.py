"""Ordinary answers judged by us and by Math-Verify: `python -m benchmarks.reward_speed [WINDOWS]`.

Ours: `Scorer` over a pool of two workers, the fast path first. Theirs: parse, parse, verify one after the other in this
process, as its README shows, both sides in dollars so that it reads bare LaTeX as a formula. No two pairs are equal, so
no cache of verdicts helps; each window holds new pairs, half of them not decidable by text or number; the two sides
take turns in going first. Verdicts must be the same for every pair before any figure counts. The last line is one JSON
object.
"""

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.parts.arguments import arguments
from benchmarks.parts.ordinary_answers import PLAIN, SYMBOLIC, Pair, ordinary_answers
from rewards.result import Claim
from rewards.sandbox.pool import ScoringPool
from rewards.scoring import Scorer
from rewards.verifiers.registry import UNDECIDED, decide_quickly

WINDOWS, PLAIN_PAIRS, SYMBOLIC_PAIRS = 10, 80, 130
SEED = 20261124
BARS = {"speed_ratio": 3.0, "share_not_decidable_plainly": 0.5}


def theirs(pairs: Sequence[Pair]) -> tuple[float, list[float]]:
    from math_verify import parse, verify

    begin = time.perf_counter()
    verdicts = [float(verify(parse(f"${reference}$"), parse(f"${answer}$"))) for answer, reference in pairs]
    return time.perf_counter() - begin, verdicts


def ours(scorer: Scorer, pairs: Sequence[Pair]) -> tuple[float, list[float | None]]:
    claims = [Claim(f"\\boxed{{{answer}}}", answer, reference) for answer, reference in pairs]
    begin = time.perf_counter()
    outcomes = scorer.score("math", claims)
    return time.perf_counter() - begin, [outcome.value for outcome in outcomes]


def is_symbolic(pair: Pair) -> bool:
    return decide_quickly("math", Claim("", *pair), {}) is UNDECIDED


def measure(num_windows: int) -> dict[str, Any]:
    seen: set[Pair] = set()
    rows, disagreements, num_undecided = [], Counter(), 0
    with ScoringPool(2, 5.0) as pool:
        scorer = Scorer(pool)
        for window in range(-1, num_windows):  # the first one starts the workers and is not counted
            row: dict[str, float] = {}
            for label, kinds, count in (("plain", PLAIN, PLAIN_PAIRS), ("symbolic", SYMBOLIC, SYMBOLIC_PAIRS)):
                named = ordinary_answers(kinds, count, SEED + window, seen)
                pairs = [pair for _, pair in named]
                num_undecided += sum(map(is_symbolic, pairs)) if window >= 0 else 0
                if window % 2:
                    (their_seconds, expected), (our_seconds, found) = theirs(pairs), ours(scorer, pairs)
                else:
                    (our_seconds, found), (their_seconds, expected) = ours(scorer, pairs), theirs(pairs)
                row |= {f"{label}_theirs": their_seconds, f"{label}_ours": our_seconds}
                for (kind, pair), one, other in zip(named, expected, found, strict=True):
                    if one != other:
                        disagreements[kind] += 1
                        print(f"verdicts differ ({kind}): {pair}: Math-Verify {one}, ours {other}", file=sys.stderr)
            if window >= 0:
                rows.append(row)
                print({key: round(value, 3) for key, value in row.items()}, file=sys.stderr)
    return summary(rows, disagreements, num_undecided)


def summary(rows: list[dict[str, float]], disagreements: Counter, num_undecided: int) -> dict[str, Any]:
    per_window = PLAIN_PAIRS + SYMBOLIC_PAIRS
    totals = {side: [row[f"plain_{side}"] + row[f"symbolic_{side}"] for row in rows] for side in ("theirs", "ours")}
    ratios = [their / our for their, our in zip(totals["theirs"], totals["ours"], strict=True)]
    return {
        "pairs": per_window * len(rows),
        "share_not_decidable_plainly": round(num_undecided / (per_window * len(rows)), 3),
        "verdicts_equal": not disagreements,
        "disagreements": dict(disagreements),
        "speed_ratio": round(statistics.median(ratios), 2),
        "speed_ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "symbolic_ratio": round(statistics.median(row["symbolic_theirs"] / row["symbolic_ours"] for row in rows), 2),
        "answers_per_second": round(per_window / statistics.median(totals["ours"]), 1),
        "math_verify_answers_per_second": round(per_window / statistics.median(totals["theirs"]), 1),
        "a_a_spread": {
            side: round(statistics.median(values[::2]) / statistics.median(values[1::2]), 3)
            for side, values in totals.items()
        },
        "workers": 2,
        "bars": BARS,
    }


def main() -> None:
    result = measure(int([*arguments(__doc__), WINDOWS][0]))
    print(json.dumps(result))
    if not result["verdicts_equal"] or any(result[name] < bar for name, bar in BARS.items()):
        sys.exit(1)


if __name__ == "__main__":
    main()
