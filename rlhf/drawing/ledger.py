"""Who owns the draws: every ordinal is given out once and ends as trained or dropped for a named reason."""

from dataclasses import dataclass, field

from model.run.state import State


@dataclass
class Ledger:
    """In flight at the end of a step are the draws whose groups are kept for a later one."""

    next_draw: int = 0
    trained: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    useful_share: float = 1.0  # share of the last step's draws; decides how many prompts the next step asks for at once
    in_flight: dict[int, str] = field(default_factory=dict)  # draw -> prompt id
    closed: list[State] = field(default_factory=list)

    def draw(self, prompt_id: str) -> int:
        """A new ordinal for a draw of `prompt_id`."""
        ordinal, self.next_draw = self.next_draw, self.next_draw + 1
        self.in_flight[ordinal] = prompt_id
        return ordinal

    def train(self, draw: int) -> None:
        self._close(draw, "trained", "")
        self.trained += 1

    def drop(self, draw: int, reason: str) -> None:
        self._close(draw, "dropped", reason)
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def take_closed(self) -> list[State]:
        """The lines to append to ledger.jsonl since the last call, in draw order."""
        lines, self.closed = sorted(self.closed, key=lambda line: line["draw"]), []
        return lines

    def check(self, kept: set[int]) -> None:
        """Raise `RuntimeError` unless draws = trained + dropped + in flight, and `kept` is what is in flight."""
        total = self.trained + sum(self.dropped.values()) + len(self.in_flight)
        if total != self.next_draw or self.in_flight.keys() != kept:
            raise RuntimeError(
                f"ledger: {self.next_draw} draws, but {self.trained} trained + {self.dropped} dropped + "
                f"{len(self.in_flight)} in flight; in flight are {sorted(self.in_flight)}, kept are {sorted(kept)}"
            )

    def state(self) -> State:
        """Data that a checkpoint keeps; `restore` takes it back."""
        return {
            "next_draw": self.next_draw,
            "trained": self.trained,
            "dropped": dict(self.dropped),
            "useful_share": self.useful_share,
            "in_flight": {str(draw): prompt_id for draw, prompt_id in self.in_flight.items()},
        }

    @classmethod
    def from_state(cls, state: State) -> "Ledger":
        in_flight = {int(draw): prompt_id for draw, prompt_id in state["in_flight"].items()}
        return cls(state["next_draw"], state["trained"], dict(state["dropped"]), state["useful_share"], in_flight)

    def end(self, draw: int, end: str, reason: str) -> None:
        """Book a draw as a line of ledger.jsonl says."""
        self.train(draw) if end == "trained" else self.drop(draw, reason)

    def _close(self, draw: int, end: str, reason: str) -> None:
        prompt_id = self.in_flight.pop(draw)
        self.closed.append({"draw": draw, "prompt_id": prompt_id, "end": end, "reason": reason})
