"""From the columns of a row to messages: what is the question, what the answer, which images belong to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.data.config import ChatTableConfig, InstructionRule, TableConfig
from model.data.instructions import asks_for_judgement, has_own_instruction, without_instruction
from model.data.media import inside
from model.data.media_cells import VIDEO_COLUMNS, Message, image_sources, media_parts, placed, sources_of
from model.data.media_error import MediaError
from model.data.media_store import MediaStore
from model.data.raw_rows import RawRow, check_text
from model.data.reading import Instruction, Reading, RowNotes
from model.data.references import PLAIN, read_reference
from model.data.tables import Table, as_json
from model.interface import Mode
from model.json_values import JsonObject
from model.run.identity import MediaDigest

_ID = ("id", "index")
_QUESTION = ("messages", "question", "problem", "prompt")
_REFERENCE = ("reference", "answer", "solution", "reward_model.ground_truth", "ground_truth")
_IMAGE = ("images", "image", "image_path")
_DATASET = ("dataset", "data_source")


@dataclass(frozen=True)
class ChatRow:
    """Messages, what is known about them, where their image files lie, and where the row came from."""

    id: str
    messages: list[Message]
    reference: str | None  # None where the row has no such column, or none that can be read
    meta: JsonObject  # all columns but the images', as JSON data
    root: Path
    dataset: str
    file: Path
    number: int
    adds_instruction: bool = True  # False: thinking mode adds nothing, because the prompt asks in its own words
    fault: str = "reference: expected str, found None"  # why there is no reference

    def asked_in(self, mode: Mode) -> Mode:
        """The mode that the processor builds the prompt in, so that no instruction stands there twice.

        `ValueError` for `Mode.auto` where the prompt's own words ask for something else.
        """
        if mode is Mode.auto and not self.adds_instruction and not asks_for_judgement(self.messages):
            raise ValueError(
                "messages: expected a prompt that mode=auto can add its instruction to, or that asks for a <judge> "
                "section in its own words, found one that asks for neither; take its instruction out, or set "
                "data.instruction=always"
            )
        return mode if self.adds_instruction else Mode.direct


@dataclass(frozen=True)
class Asked:
    """The question of a row that a stage has found itself, and from which columns question and answer come."""

    column: str
    question: object  # a text, or messages
    answer_column: str


class ChatReader:
    """Reads rows as `config` says; bytes of images go to `media`."""

    def __init__(self, config: TableConfig, media: MediaStore) -> None:
        self._config, self._media = config, media
        self.digest = MediaDigest()  # covers all image and video files that rows name
        self.reading = Reading()
        self._chat = chat = config if isinstance(config, ChatTableConfig) else ChatTableConfig()
        self._id = _names(config.id_column, _ID)
        self._question = _names(chat.question_column, _QUESTION)
        self._reference = _names(chat.reference_column, _REFERENCE)
        self._image = _names(config.image_column, _IMAGE)
        self._dataset = _names(chat.dataset_column, _DATASET)

    def read(self, raw: RawRow, table: Table, ordinal: int, asked: Asked | None = None) -> ChatRow:
        """The messages of a row, the `ordinal`-th of its table.

        With `asked` it has no reference, and images that no text places come before the first user's text: what is
        asked may be a whole conversation. `ValueError` says why it cannot be used.
        """
        if raw.problem:
            raise ValueError(raw.problem)
        columns = raw.columns
        question_column, question = (asked.column, asked.question) if asked else self._question_of(columns)
        image_column, images = first_of(columns, self._image)
        id_column, row_id = first_of(columns, self._id)
        reference_column, reference = (asked.answer_column, None) if asked else first_of(columns, self._reference)
        answer, form, fault = self._answer_of(reference)
        dataset_column, dataset = first_of(columns, self._dataset)
        messages, used = placed(question_column, question, sources_of(columns, images), first=asked is not None)
        instruction = self.instruct(messages)
        messages, root = self._with_files(messages, table.root)
        self._note_videos(messages, root)
        media = {image_column if "image" in used else "", *(VIDEO_COLUMNS if "video" in used else ())}
        meta = {key: as_json(value) for key, value in columns.items() if key not in media}
        if isinstance(question, list):
            meta[question_column] = messages  # with file names where the row has bytes
        if dataset_column != "data_source":
            meta["dataset"] = table.name if dataset is None else dataset
        check_text({"id": _id(row_id, ""), "reference": answer})
        check_text({"messages": messages, **{key: value for key, value in meta.items() if key != question_column}})
        named = {"question": question_column, "answer": reference_column, "images": image_column if images else ""}
        self.reading.row = RowNotes({**named, "data set": dataset_column, "id": id_column}, form, instruction)
        return ChatRow(
            id=self.id_of(raw, table, ordinal),
            messages=messages,
            reference=answer,
            meta=meta,
            root=root,
            dataset=table.name if dataset is None else str(dataset),
            file=raw.file,
            number=raw.number,
            adds_instruction=instruction in (Instruction.added, Instruction.removed),
            fault=fault,
        )

    def id_of(self, raw: RawRow, table: Table, ordinal: int) -> str:
        """The id of a row that need not hold messages. `ValueError` where it is no text or number."""
        if raw.problem:
            raise ValueError(raw.problem)
        return table.prefix + _id(first_of(raw.columns, self._id)[1], f"{table.name}-{ordinal}")

    def own_id(self, raw: RawRow) -> str | None:
        """The id that a row names itself by, for messages; None where it has none that can be read."""
        value = first_of(raw.columns, self._id)[1]
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None

    def id_column(self, columns: Mapping[str, object]) -> str:
        """The name of the column that holds the row's id; empty where it has none."""
        return first_of(columns, self._id)[0]

    def image_column(self, columns: Mapping[str, object]) -> str:
        """The name of the column that holds the row's images; empty where it has none."""
        return first_of(columns, self._image)[0]

    def images(self, columns: Mapping[str, object], root: Path) -> tuple[list[str], Path]:
        """(file names, the one folder they are relative to) of the row's image column, checked."""
        parts = [{"type": "image", "image": source} for source in image_sources(first_of(columns, self._image)[1])]
        folder = self._put_files(parts, root)
        return [part["image"] for part in parts], folder

    def _question_of(self, columns: Mapping[str, object]) -> tuple[str, Any]:
        """(name, value) of the question's column: messages before a text, whose system text would be lost."""
        name, value = first_of(columns, self._question)
        prompt = columns.get("prompt")
        if self._question is _QUESTION and name != "messages" and isinstance(prompt, list) and prompt:
            return "prompt", prompt
        return name, value

    def _answer_of(self, reference: object) -> tuple[str | None, str, str]:
        """(answer, form, why there is none). It is no fault of the row where nothing asks for the answer."""
        if reference is None:
            return None, PLAIN, ChatRow.fault
        try:
            return *read_reference(reference, self._chat.reference_form), ""
        except ValueError as error:
            return None, PLAIN, str(error)

    def instruct(self, messages: list[Message]) -> Instruction:
        """Settle what thinking mode does with these messages; one that holds the instruction loses it."""
        if self._chat.instruction is InstructionRule.never:
            return Instruction.never
        if self._chat.instruction is InstructionRule.auto and without_instruction(messages):
            return Instruction.removed
        is_own = self._chat.instruction is InstructionRule.auto and has_own_instruction(messages)
        return Instruction.own if is_own else Instruction.added

    def _with_files(self, messages: list[Message], root: Path) -> tuple[list[Message], Path]:
        """Messages whose images are file names, and the one folder that these are relative to."""
        parts = list(media_parts(messages))
        folder = self._put_files([part for part in parts if part.get("type") == "image"], root)
        if folder != root and any(part.get("type") == "video" for part in parts):
            raise ValueError(
                "images: expected file names in a row with a video, found bytes; write the images as files"
            )
        return messages, folder

    def _put_files(self, images: Sequence[Message], root: Path) -> Path:
        """Make the images of these parts file names; the folder they are relative to."""
        held = any(isinstance(part["image"], bytes) for part in images)
        for part in images:
            source = part["image"]
            if isinstance(source, str):
                path = self._checked_file(root, source)
                part["image"] = self._media.put(path.read_bytes()) if held else source
            else:
                self._check_size(len(source), f"image of {len(source)} bytes")
                part["image"] = self._media.put(source)
        return self._media.folder if held else root

    def _note_videos(self, messages: list[Message], root: Path) -> None:
        """Add video files to the digest. `MediaError` for one that is not there."""
        for part in media_parts(messages):
            name = part.get("video") if part.get("type") == "video" else None
            if isinstance(name, str):
                path = inside(root, name, "video")
                if not _is_file(path):
                    raise MediaError(f"video {path}: expected a file, found none")
                self.digest.add(path, name)

    def _checked_file(self, root: Path, name: str) -> Path:
        path = inside(root, name)
        try:
            if not path.is_file():
                raise MediaError(f"image {path}: expected a file, found none")
            self._check_size(path.stat().st_size, f"image {path}")
            self.digest.add(path, name)
        except OSError as error:  # a name that is too long for the file system
            raise MediaError(
                f"image: expected a file that can be opened, found {name!r:.80}: {error.strerror}"
            ) from None
        return path

    def _check_size(self, size: int, what: str) -> None:
        limit = self._config.max_image_bytes
        if size > limit:
            raise MediaError(f"{what}: expected at most data.max_image_bytes={limit}, found {size}")


def _is_file(path: Path) -> bool:
    """False too for a name that is too long for the file system."""
    try:
        return path.is_file()
    except OSError:
        return False


def _names(configured: str, known: Sequence[str]) -> Sequence[str]:
    return (configured,) if configured else known


def require_reference(row: ChatRow) -> str:
    """`ValueError` for a row without one."""
    if row.reference is None:
        raise ValueError(row.fault)
    return row.reference


def first_of(columns: Mapping[str, object], names: Sequence[str]) -> tuple[str, Any]:
    """(name, value) of the first of these columns that a row has; a dot leads into an object."""
    for name in names:
        value: object = columns
        for key in [name] if name in columns else name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return name, value
    return "", None


def _id(value: object, default: str) -> str:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"id: expected str or int, found {value!r:.80}")
    return str(value)
