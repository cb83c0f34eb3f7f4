"""Rows of data that cannot be used: counted, named, skipped up to a limit."""

import json
import sys
from collections.abc import Collection
from pathlib import Path

from model.json_values import JsonObject
from model.run.durable import write_file
from model.run.printable import printable

_LONGEST_ID, _LONGEST_REASON = 80, 500  # characters
_NUM_SHOWN = 5
_NUM_IN_ERROR = 3


class BadRows:
    """The bad rows of one table or prompt set.

    Those found while it is opened come again at every opening. Those found later, when pixels are decoded, are state
    that a checkpoint keeps.
    """

    def __init__(self, limit: float, report: Path | None = None, key: str = "data.max_bad_rows") -> None:
        """`limit`: a share of all rows below 1, a number of rows from 1 on; `key` is its setting. `report`: JSONL file
        that names them all, always what is known now.
        """
        self._limit, self._report, self._key = limit, report, key
        self._total = 0
        self._at_opening: list[JsonObject] = []
        self._later: dict[str, JsonObject] = {}  # by id

    def __len__(self) -> int:
        return len(self._at_opening) + len(self._later)

    @property
    def ids(self) -> Collection[str]:
        """Ids of the rows that were found bad after the table was opened."""
        return self._later.keys()

    def add(self, file: Path, number: int, reason: str, row_id: str | None = None) -> None:
        """Note a row that the opening leaves out."""
        known = {} if row_id is None else {"id": row_id}
        self._at_opening.append({"file": str(file), "row": number, **known, "reason": reason})

    def opened(self, total: int) -> None:
        """Name what was found in `total` rows. `ValueError` past the limit."""
        self._total = total
        self._write()
        self._check()
        for record in self._at_opening[:_NUM_SHOWN]:
            print(f"bad row: {_named(record)}", file=sys.stderr)
        if self._at_opening:
            where = f"; all are named in {self._report}" if self._report else ""
            limit = "" if self._limit >= total else f"; {self._key}={self._limit:g} allows {self._allowed}"
            print(f"{len(self)} of {total} rows cannot be used and are skipped{limit}{where}", file=sys.stderr)

    def add_later(self, file: Path, number: int, prompt_id: str, reason: str) -> None:
        """Note and name a row whose files turned out to be damaged. `ValueError` past the limit."""
        self._later[prompt_id] = {"file": str(file), "row": number, "id": prompt_id, "reason": reason}
        self._write()
        print(f"bad row: {_named(self._later[prompt_id])}", file=sys.stderr)
        self._check()

    def state(self) -> list[JsonObject]:
        """Data that a checkpoint keeps; `restore` takes it back."""
        return list(self._later.values())

    def restore(self, state: list[JsonObject]) -> None:
        self._later = {record["id"]: record for record in state}
        self._write()

    @property
    def _allowed(self) -> int:
        share = self._limit * self._total + 1e-9  # 0.29 x 100 is a little less than 29
        return min(int(self._limit if self._limit >= 1 else share), self._total - 1)

    def _check(self) -> None:
        if len(self) <= self._allowed:
            return
        first, *others = [*self._at_opening, *self._later.values()][-1:] if self._later else self._at_opening
        more = "".join(f"; {_named(record)}" for record in others[: _NUM_IN_ERROR - 1])
        where = f"; all are named in {self._report}" if self._report else ""
        raise ValueError(
            f"data: {_named(first)}{more}. {len(self)} of {self._total} rows cannot be used, "
            f"{self._key}={self._limit:g} allows {self._allowed}{where}; mend or remove them, or raise {self._key}"
        )

    def _write(self) -> None:
        if self._report is None:
            return
        if len(self):
            lines = [json.dumps(record) + "\n" for record in [*self._at_opening, *self._later.values()]]
            self._report.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._report, "".join(lines).encode())
        else:
            self._report.unlink(missing_ok=True)


def _named(record: JsonObject) -> str:
    known = f" (id {printable(record['id'], _LONGEST_ID)})" if "id" in record else ""
    return f"{printable(record['file'])}:{record['row']}: {printable(record['reason'], _LONGEST_REASON)}{known}"
