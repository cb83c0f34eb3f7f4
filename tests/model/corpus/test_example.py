"""Rows of public data sets in their published layouts, and rows that are not understood."""

from pathlib import Path

import pytest

from model.corpus.corpus import Corpus
from model.corpus.example import Form, read_example
from model.corpus.reading import example_at
from model.data.config import LoaderConfig, SourceConfig, SourceKind, TableConfig
from model.data.look import text_of
from model.data.sources import DataFolders
from tests.model.corpus import layouts
from tests.model.data.test_video import write_video

ROOT = Path(__file__).resolve().parents[3]


def corpus_of(processor, path, **settings) -> Corpus:
    source = SourceConfig(paths=[str(path)], **settings)
    return Corpus("s", source, "", TableConfig(), LoaderConfig(workers=0), processor, DataFolders(), 4096)


@pytest.mark.parametrize("name", layouts.SETS)
def test_public_sets_are_read_as_they_are(tiny, tmp_path, name):
    """Every text of the answer is there, and is scored; the question is not."""
    write, settings, num_rows = layouts.SETS[name]
    if name == "LLaVA-Video":
        write_video(tmp_path / "clip.mp4")
    corpus = corpus_of(tiny[1], write(tmp_path), **settings)
    assert len(corpus) == num_rows and not len(corpus.bad_rows)
    example, _ = example_at(corpus.task(0, opens_images=True).address)
    row = corpus.build(0)
    assert row.num_tokens == corpus.length(0)
    scored = [
        token
        for number, completion in enumerate(row.completions)
        for place, token in enumerate(completion)
        if row.scored is None or row.scored[number][place]
    ]
    text = tiny[1].tokenizer.decode(scored)
    said = text_of(example)
    answer = next(one for one in ("square", "thank you.", "It moves.", "4") if one in said)
    assert answer in text and "What" not in text and "?" not in text
    has_images = "image" in said or example.images
    assert bool(row.images) == bool(has_images or "<video>" in said)


def test_the_table_of_public_sets_names_those_that_are_tested():
    table = (ROOT / "docs" / "data.md").read_text().partition("### Public data sets")[2].partition("\n#")[0]
    named = {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")} - {"set"}
    assert named == set(layouts.SETS)


def test_every_turn_of_the_assistant_is_trained_in_one_row(tiny, tmp_path):
    row = corpus_of(tiny[1], layouts.llava(tmp_path)).build(0)
    assert row.scored is not None and len(row.completions) == 1
    scored = [token for token, one in zip(row.completions[0], row.scored[0], strict=True) if one]
    assert tiny[1].tokenizer.decode(scored, keep_control=True) == "A square.<|im_end|>Blue.<|im_end|>"
    assert row.num_scored == len(scored)


def test_several_answers_share_what_was_asked(tiny, tmp_path):
    """Rows of SFT as this project writes them."""
    turns = [{"role": "user", "content": "Pick one."}]
    rows = [{"messages": turns, "completions": ["A.", "B is it."]}, {"messages": turns, "completions": ["A."]}]
    corpus = corpus_of(tiny[1], layouts.jsonl(tmp_path / "a.jsonl", rows))
    several, one = corpus.build(0), corpus.build(1)
    assert [tiny[1].tokenizer.decode(ids) for ids in several.completions] == ["A.", "B is it."]
    assert several.prefix_ids == one.prefix_ids and several.completions[0] == one.completions[0]
    assert corpus.length(0) == several.num_tokens


@pytest.mark.parametrize(
    ("columns", "form", "wanted"),
    [
        ({"a": 1}, Form(), "found the columns ['a']"),
        ({"a": 1}, Form(SourceKind.chat), "expected a conversation, or a question with an answer"),
        ({"messages": [{"role": "user", "content": "x"}]}, Form(), "ends with the assistant"),
        ({"messages": [{"role": "user", "content": "x"}], "completions": []}, Form(), "at least one text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, Form(), "expected turns of user, assistant, system"),
        ({"texts": [{"user": "x"}]}, Form(), "texts user and assistant"),
        ({"question": "x", "answer": ""}, Form(), "answer: expected a text or a number"),
        ({"question": "x", "answer": {"a": 1}}, Form(), "answer: expected a text or a number"),
        ({"caption": ["a", "b"]}, Form(template="what?"), "expected one text to answer the template"),
        ({"text": "x", "image": "https://a/b.png"}, Form(), "nothing is downloaded"),
        ({"text": "x", "image": "../b.png"}, Form(), "expected a path inside"),
        ({"text": "x", "image": "b.png"}, Form(), "expected a file, found none"),
        ({"text": "x", "image": b"no image"}, Form(), None),  # its header is read when it is measured
        ({"text": "x" * 5_000_000}, Form(), "bytes of text"),
        ({"pages": [{"text": []}], "image": b""}, Form(), "pages: expected pages with a list of texts"),
        ({"text": "x", "video": "a.mp4"}, Form(), "videos: expected a conversation or a template"),
        ({"text": "x", "prefix": 3}, Form(), "prefix: expected a text"),
    ],
)
def test_rows_that_are_not_understood(tmp_path, columns, form, wanted):
    if wanted is None:
        assert read_example(columns, form, tmp_path).texts == ["x"]
        return
    with pytest.raises(ValueError, match="expected") as error:
        read_example(columns, form, tmp_path)
    assert wanted in str(error.value)
