"""Byte-level BPE in which control tokens are ids, never text.

The vocabulary lives in an ordinary `tokenizer.json` (Qwen2 style). On loading, its added tokens are taken out of the
text matcher, so no string can ever encode to one of them; code that is entitled to a control token asks for its id.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from model.interface import CONTROL_TOKENS, END_OF_TEXT, IM_END, THINK_END, THINK_START
from model.json_values import JsonObject
from model.run.manifest import verify_files

_MOST_ENTRIES = 2**23
_PIECE = 1 << 15  # characters
_SLACK = 64  # tokens of a piece, far more than its two ends can change
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZER_FILE = "tokenizer.json"
THINK_TAGS = re.compile(f"({re.escape(THINK_START)}|{re.escape(THINK_END)})")


class Tokenizer:
    """Text <-> ids. `control` maps each control token's text to its id."""

    def __init__(self, raw: str, where: str) -> None:
        """Settings that would cut, pad or vary what is encoded are taken out. `ValueError` at `where` for a file that
        is no such tokenizer, or whose ids are not whole, distinct and its own."""
        try:
            description = json.loads(raw)
            varied = _without_variations(description)
            added = _added_tokens(description.pop("added_tokens"), description["model"]["vocab"])
            self._engine = Engine.from_str(json.dumps({**description, "added_tokens": []}))
        except Exception as error:  # the engine raises bare Exception on a bad file
            raise ValueError(f"{where}: expected a tokenizer.json with added_tokens, found: {error}") from None
        missing = [name for name in CONTROL_TOKENS if name not in added]
        if missing:
            raise ValueError(f"{where}: added_tokens: expected {missing}, found only {sorted(added)}")
        self._largest_id = max(description["model"]["vocab"].values(), default=0)
        self.control = added
        self.raw = varied or raw
        self._control_text = {index: text for text, index in added.items()}
        self._kept_on_decode = {added[THINK_START], added[THINK_END]}

    @classmethod
    def from_folder(cls, folder: Path, add_missing: bool = False) -> "Tokenizer":
        """Read `folder/tokenizer.json`. `add_missing` appends control tokens that it lacks, as SAIL-VL2 did."""
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise ValueError(f"{folder}: expected a tokenizer.json in the checkpoint folder, found none")
        verify_files(Path(folder), [TOKENIZER_FILE])
        try:
            raw = path.read_text(encoding="utf-8")
            return cls(_with_control_tokens(raw) if add_missing else raw, str(path))
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: expected a tokenizer.json with a BPE model, found: {error!r}") from None

    @property
    def num_entries(self) -> int:
        return 1 + max(max(self.control.values()), self._largest_id)

    @property
    def end_id(self) -> int:
        """The id that ends a turn."""
        return self.control[IM_END]

    def encode(self, text: str) -> list[int]:
        """Ids of untrusted text: only byte-level BPE entries, whatever the text spells. `ValueError` if not UTF-8."""
        try:
            return self._engine.encode(text, add_special_tokens=False).ids
        except TypeError:  # the engine raises it for half a surrogate pair, which JSON can spell
            raise ValueError(f"text: expected what UTF-8 can hold, found a lone surrogate in {text[:80]!r}") from None

    def exceeds(self, texts: Iterable[str], most: int) -> bool:
        """Whether texts surely have more than `most` tokens. Never wrong about one that has fewer.

        Encoding takes 200 bytes and a microsecond for each byte of text, so a long text is looked at piece by piece,
        and not to its end.
        """
        left = most
        for text in texts:
            for start in range(0, len(text), _PIECE):
                # Tokens that cross the ends of a piece may be one less when the text is encoded as a whole.
                left -= max(
                    0, len(self._engine.encode(text[start : start + _PIECE], add_special_tokens=False)) - _SLACK
                )
                if left < 0:
                    return True
        return False

    def encode_with_think_tags(self, text: str) -> list[int]:
        """Ids of text that may use the think tags: our own instruction, and completions."""
        ids: list[int] = []
        for part in THINK_TAGS.split(text):
            ids += [self.control[part]] if part in (THINK_START, THINK_END) else self.encode(part)
        return ids

    def decode(self, ids: Sequence[int], keep_control: bool = False) -> str:
        """Text of ids. Control tokens are dropped, the think tags kept; `keep_control` shows all.

        A completion may stop inside a character: undecodable bytes become U+FFFD.
        """
        pieces: list[str] = []
        run: list[int] = []
        for index in ids:
            name = self._control_text.get(index)
            if name is None:
                run.append(index)
                continue
            pieces.append(self._engine.decode(run))
            run = []
            if keep_control or index in self._kept_on_decode:
                pieces.append(name)
        return "".join([*pieces, self._engine.decode(run)])

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and a tokenizer_config.json that transformers reads."""
        (folder / TOKENIZER_FILE).write_text(self.raw, encoding="utf-8")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is; Qwen2Tokenizer adds NFC
            "eos_token": IM_END,
            "pad_token": END_OF_TEXT,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 131072,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _without_variations(description: JsonObject) -> str:
    """Take stored truncation, padding and dropout out. The file's text without them, empty where it has none.

    A tokenizer that was saved while it truncated would cut every prompt and every completion that is taught.
    """
    model = description["model"]
    if not any((description.get("truncation"), description.get("padding"), model.get("dropout"))):
        return ""
    description |= {"truncation": None, "padding": None}
    model["dropout"] = None
    return json.dumps(description, ensure_ascii=False)


def _added_tokens(tokens: Sequence[JsonObject], vocab: Mapping[str, int]) -> dict[str, int]:
    """Content -> id. `ValueError` unless all ids are whole, distinct, and none is that of a piece of text."""
    for text, index in vocab.items():
        if type(index) is not int or not 0 <= index < _MOST_ENTRIES:
            raise ValueError(f"model.vocab: {text!r:.80}: expected a whole id from 0 on, found {index!r}")
    taken: dict[int, str] = {index: text for text, index in vocab.items()}
    if len(taken) < len(vocab):
        raise ValueError("model.vocab: expected every id once, found one twice")
    added: dict[str, int] = {}
    for token in tokens:
        name, index = token["content"], token["id"]
        if not isinstance(name, str) or not name:
            raise ValueError(f"added_tokens: content: expected a text, found {name!r:.80}")
        if type(index) is not int or not 0 <= index < _MOST_ENTRIES:
            raise ValueError(f"added_tokens: {name}: expected a whole id from 0 on, found {index!r:.80}")
        if index in taken or name in added:
            raise ValueError(f"added_tokens: {name}: expected an id of its own, found {index}, or the token, twice")
        taken[index] = name
        added[name] = index
    return added


class Script:
    """Ids and loss weights in the making, from plain text and the ids of control tokens.

    Adjacent texts of one weight are joined before they are encoded, so that merges cross the borders of parts as in the
    published template.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._weights: list[float] = []
        self._text, self._text_weight = "", 0.0

    def add(self, part: str | int, weight: float = 0.0) -> None:
        if isinstance(part, str):
            if weight != self._text_weight:
                self._flush()
            self._text, self._text_weight = self._text + part, weight
            return
        self._flush()
        self._append([part], weight)

    def finish(self) -> tuple[list[int], list[float]]:
        self._flush()
        return self._ids, self._weights

    def _flush(self) -> None:
        if self._text:
            self._append(self._tokenizer.encode(self._text), self._text_weight)
        self._text = ""

    def _append(self, ids: list[int], weight: float) -> None:
        self._ids += ids
        self._weights += [weight] * len(ids)


def _with_control_tokens(raw: str) -> str:
    """The tokenizer.json with every missing control token appended, in the order of `CONTROL_TOKENS`."""
    description = json.loads(raw)
    added = description.setdefault("added_tokens", [])
    known = {token["content"] for token in added}
    next_id = 1 + max([token["id"] for token in added] + list(description["model"]["vocab"].values()))
    for name in CONTROL_TOKENS:
        if name not in known:
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            added.append({"id": next_id, "content": name, **flags})
            next_id += 1
    return json.dumps(description, ensure_ascii=False)


def train_tokenizer(texts: Iterable[str], num_entries: int) -> Tokenizer:
    """A byte-level BPE with single digits and the control tokens at the end; deterministic for given texts."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_entries - len(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    think = (THINK_START, THINK_END)
    engine.add_tokens([AddedToken(name, normalized=False, special=name not in think) for name in CONTROL_TOKENS])
    return Tokenizer(engine.to_str(pretty=False), "trained tokenizer")
