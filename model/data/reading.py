"""How the rows of a table were read, for the first lines of a run."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from model.data.references import LEFT, OBJECT, PLAIN

_FORMS = {
    "gsm8k": "`#### ANSWER`",
    "boxed": "`\\boxed{ANSWER}`",
    "answer_tag": "`<answer> ANSWER </answer>`",
    OBJECT: "`{ground_truth: ANSWER}`",
}
_MOST_NAMES = 12


class Instruction(Enum):
    """The fate of the thinking instruction of a prompt."""

    added = "added"  # by thinking mode, as the published interface has it
    removed = "removed"  # from the text, so that it is not there twice
    own = "own"  # the prompt asks for a thought and a box in its own words
    never = "never"  # data.instruction says so


@dataclass
class RowNotes:
    """How one row was read."""

    columns: dict[str, str]  # use (question, answer ...) -> the column, or several with "and" between them
    form: str = PLAIN  # how the reference was found
    instruction: Instruction = Instruction.added
    remarks: list[str] = field(default_factory=list)  # a stage's inferences, in words


class Reading:
    """Counts how the rows were read that could be used."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.row = RowNotes({})  # the row that was read last
        self._columns: dict[str, Counter[str]] = {}
        self._seen: set[str] = set()
        self._forms: Counter[str] = Counter()
        self._instructions: Counter[Instruction] = Counter()
        self._remarks: Counter[str] = Counter()

    def keep(self, names: Iterable[str]) -> None:
        """Count the row that was read last, which has columns of these names."""
        self.num_rows += 1
        for use, column in self.row.columns.items():
            if column:
                self._columns.setdefault(use, Counter())[column] += 1
        self._seen.update(names)
        self._forms[self.row.form] += 1
        self._instructions[self.row.instruction] += 1
        self._remarks.update(self.row.remarks)

    def lines(self, what: str, measured: str = "") -> list[str]:
        """The rows of `what` in a few lines; `measured` says how long they are."""
        named = (name for columns in self._columns.values() for column in columns for name in column.split(" and "))
        used = {name.partition(".")[0] for name in named}
        parts = "".join(f", {use} <- {_named(columns)}" for use, columns in self._columns.items())
        unused = sorted(self._seen - used)
        more = f" and {len(unused) - _MOST_NAMES} more" if len(unused) > _MOST_NAMES else ""
        rest = f"; not used: {', '.join(unused[:_MOST_NAMES])}{more}" if unused else ""
        return [
            f"{what}: {self.num_rows} rows{f' ({measured})' if measured else ''}{parts}{rest}",
            *(f"{what}: {line}" for line in (*self._form_lines(), *self._instruction_lines())),
            *(f"{what}: {count} rows {remark}" for remark, count in self._remarks.items()),
        ]

    def _form_lines(self) -> list[str]:
        lines = []
        if found := {form: count for form, count in self._forms.items() if form in _FORMS}:
            read = ", ".join(f"{count} as {_FORMS[form]}" for form, count in found.items())
            lines.append(f"references read: {read}; data.reference_form=plain takes them as they are")
        if left := self._forms[LEFT]:
            lines.append(
                f"references: {left} hold ####, \\boxed or <answer> in a way that is not clear, and are taken as they "
                "are; data.reference_form=gsm8k, boxed or answer_tag reads them"
            )
        return lines

    def _instruction_lines(self) -> list[str]:
        lines = []
        if removed := self._instructions[Instruction.removed]:
            lines.append(f"{removed} prompts end with the thinking instruction, which is not given twice")
        if own := self._instructions[Instruction.own]:
            lines.append(
                f"{own} prompts ask for <think> and \\boxed in their own words, so thinking mode adds nothing to "
                "them; data.instruction=always adds the published instruction"
            )
        return lines


def _named(columns: Mapping[str, int]) -> str:
    if len(columns) == 1:
        return next(iter(columns))
    return " or ".join(f"{name} ({count})" for name, count in columns.items())
