"""The terminal application: a list of entries, one of them in full, and filters above. Needs the extra `look`."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import DataTable, Footer, Header, Input, Select, Static

from model.run.printable import printable
from rlhf.look.entries import Entry, Filters, entries
from rlhf.look.pages import details

MOST_ENTRIES = 5000
"""Entries that are listed at once; filters find those behind them."""

_COLUMNS = ("step", "group", "sample", "mode", "verdict", "reward", "answer", "reference", "dropped", "id")
_CHOICES = ("step", "verdict", "dropped", "mode", "dataset")
_TEXTS = ("group", "text")


class LookApp(App[int]):
    """Pages through the entries of some files. Their texts may hold brackets, which are no markup."""

    CSS = """
    #filters { height: 3; }
    #filters Select { width: 1fr; }
    #filters Input { width: 1fr; }
    #list { height: 2fr; }
    #shown { height: 3fr; border-top: solid $accent; padding: 0 1; }
    """
    BINDINGS = [  # noqa: RUF012  (textual declares it so)
        Binding("q", "quit", "quit"),
        Binding("n", "move(1)", "next"),
        Binding("p", "move(-1)", "previous"),
        Binding("slash", "search", "search", key_display="/"),
        Binding("escape", "leave", "list"),
        Binding("r", "clear", "all"),
    ]

    def __init__(self, files: Sequence[Path], filters: Filters | None = None) -> None:
        super().__init__()
        self.files, self.filters = files, filters or Filters()
        self.entries: list[Entry] = []
        self.has_more = False

    def compose(self) -> ComposeResult:
        yield Header()
        with Horizontal(id="filters"):
            for name in _CHOICES:
                yield Select[str]([], prompt=name, id=name)
            for name in _TEXTS:
                yield Input(getattr(self.filters, name), placeholder=name, id=name)
        yield DataTable[Text](id="list", cursor_type="row", zebra_stripes=True)
        with VerticalScroll(id="shown"):
            yield Static("", id="details", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        try:
            self._fill()
        except ValueError as error:  # a line behind the first that is none
            self.exit(2, return_code=2, message=f"error: {error}")

    def _fill(self) -> None:
        self._offer_choices(islice(entries(self.files), MOST_ENTRIES))
        self.query_one(DataTable).add_columns(*_COLUMNS)
        self.show_entries()
        self.query_one(DataTable).focus()

    def show_entries(self) -> None:
        """Fill the list with what the filters let pass."""
        found = list(islice(entries(self.files, self.filters), MOST_ENTRIES + 1))
        self.entries, self.has_more = found[:MOST_ENTRIES], len(found) > MOST_ENTRIES
        table = self.query_one(DataTable)
        table.clear()
        for entry in self.entries:
            table.add_row(*(Text(printable(_cell(entry, name), 40), no_wrap=True) for name in _COLUMNS))
        more = ", and more" if self.has_more else ""
        self.title = f"{len(self.entries)} completions{more}"
        self.show_details(0)

    def show_details(self, number: int) -> None:
        text = details(self.entries[number]) if number < len(self.entries) else "no entry that the filters let pass"
        self.query_one("#details", Static).update(text)
        self.query_one("#shown").scroll_home(animate=False)

    @on(DataTable.RowHighlighted)
    def _on_row(self, event: DataTable.RowHighlighted) -> None:
        self.show_details(event.cursor_row)

    @on(Select.Changed)
    def _on_choice(self, event: Select.Changed) -> None:
        self._filter(str(event.select.id), "" if event.value is Select.NULL else str(event.value))

    @on(Input.Submitted)
    def _on_text(self, event: Input.Submitted) -> None:
        self._filter(str(event.input.id), event.value.strip())
        self.query_one(DataTable).focus()

    def action_move(self, by: int) -> None:
        table = self.query_one(DataTable)
        table.move_cursor(row=table.cursor_row + by)

    def action_search(self) -> None:
        self.query_one("#text", Input).focus()

    def action_leave(self) -> None:
        self.query_one(DataTable).focus()

    def action_clear(self) -> None:
        for name in _CHOICES:
            self.query_one(f"#{name}", Select).clear()
        for name in _TEXTS:
            self.query_one(f"#{name}", Input).value = ""
        self.filters = Filters()
        self.show_entries()

    def _filter(self, name: str, value: str) -> None:
        changed = Filters(**{**vars(self.filters), name: value})
        if changed != self.filters:
            self.filters = changed
            self.show_entries()

    def _offer_choices(self, found: Iterable[Entry]) -> None:
        """Let each choice offer the values that there are."""
        values: dict[str, dict[str, None]] = {name: {} for name in _CHOICES}
        for entry in found:
            for name, known in values.items():
                value = getattr(entry, name)
                if value not in (None, ""):
                    known[str(value)] = None
        for name, known in values.items():
            given = getattr(self.filters, name)
            offered = [*known, *([given] if given and given not in known else [])]
            select = self.query_one(f"#{name}", Select)
            select.set_options([(Content(printable(value, 40)), value) for value in offered])
            if given:
                select.value = given


def _cell(entry: Entry, name: str) -> str:
    value = getattr(entry, name)
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
