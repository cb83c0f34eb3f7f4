"""Folders in the published layout of public data sets, each with a few rows that were made for these tests.

`FOLDERS` gives for each set the folders that it is published as, with what must come of their rows.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Rows = Sequence[Mapping[str, Any]]
Expected = list[tuple[str, Any]]
"""(verifier, reference) of the prompts of one split, in order."""


def picture(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 37 % 256, number * 91 % 256, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def struct(number: int = 0) -> dict[str, Any]:
    """An image as `datasets` stores it."""
    return {"bytes": picture(number), "path": None}


def parquet(path: Path, rows: Rows) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)


def image(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(number))


def written(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def geometry3k(folder: Path, repeats: int = 1) -> dict[str, Expected]:
    more = {"id": 7, "choices": ["1", "2", "3", "4"], "ground_truth": "B"}
    rows = []
    for number in range(repeats):
        first = {"images": [struct(2 * number)], "problem": "<image>Find x.", "answer": "2 \\sqrt { 221 }"}
        second = {"images": [struct(2 * number + 1)], "problem": "<image>Find the area.", "answer": "48"}
        rows += [{**first, **more}, {**second, **more}]
    parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows[-1:])
    return {"train": [("math", "2 \\sqrt { 221 }"), ("math", "48")] * repeats, "test": [("math", "48")]}


def mmk12(folder: Path) -> dict[str, Expected]:
    train = [
        {"id": "a", "question": "As shown, AB = 2 and BC = 1. AC is ___.", "answer": "$\\sqrt{5}$", "subject": "math"},
        {"id": "b", "question": "The angle is ___ degrees.", "answer": "60", "subject": "math"},
    ]
    listed = "Which gas is it?\nA. Oxygen\nB. Hydrogen\nC. Helium\nD. Neon"
    test = [{"id": "c", "question": listed, "answer": "B", "subject": "chemistry"}]
    parquet(folder / "data" / "train-00000-of-00001.parquet", [{**row, "image": struct(1)} for row in train])
    parquet(folder / "data" / "test-00000-of-00001.parquet", [{**row, "image": struct(2)} for row in test])
    return {"train": [("math", "$\\sqrt{5}$"), ("math", "60")], "test": [("choice", "B")]}


def mm_eureka(folder: Path) -> dict[str, Expected]:
    image(folder / "MMPR" / "images" / "geo" / "1.png")
    image(folder / "K12" / "2.png", 2)
    system = {"role": "system", "content": "Think first. Answer within answer tags."}

    def asked(content: Any) -> list[dict[str, Any]]:
        return [system, {"role": "user", "content": content}]

    home = "file:///inspire/somebody/report_data"
    choice = "<image>\nWhat is it?\nA. A cat\nB. A dog"
    rows = [
        {"id": "0", "conversations": asked("<image>\nFind x."), "answer": "\\frac{1}{2}"},
        {"id": "1", "conversations": json.dumps(asked(choice)), "answer": "B"},
        {"id": "2", "conversations": asked([{"type": "image"}, {"type": "text", "text": "Sum?"}]), "answer": "$12$"},
    ]
    names = ["MMPR/images/geo/1.png", "K12/2.png", "K12/2.png"]
    found = [{**row, "image_urls": [f"{home}/{name}"]} for row, name in zip(rows, names, strict=True)]
    lines(folder / "dataset.jsonl", found)
    return {"train": [("math", "\\frac{1}{2}"), ("choice", "B"), ("math", "$12$")]}


def scienceqa(folder: Path) -> dict[str, Expected]:
    common = {"task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "biology"}
    common |= {"category": "Classification", "skill": "Classify", "lecture": "", "solution": "It has fur."}
    rows = [
        {"image": struct(1), "question": "Which one?", "choices": ["cat", "dog"], "answer": 1, "hint": "", **common},
        {"image": None, "question": "Which two?", "choices": ["1", "2", "3"], "answer": 0, "hint": "Read.", **common},
    ]
    for split in ("train", "validation", "test"):
        parquet(folder / "data" / f"{split}-00000-of-00001-1028f23e353fbe3e.parquet", rows)
    return {split: [("choice", "B"), ("choice", "A")] for split in ("train", "validation", "test")}


def clevr(folder: Path) -> dict[str, Expected]:
    """The release of its authors: questions of a split in one object, images in folders."""
    common = {"question_family_index": 4, "program": [{"function": "scene", "inputs": [], "value_inputs": []}]}

    def rows(split: str, answers: Sequence[str]) -> list[dict[str, Any]]:
        name = f"CLEVR_{split}_000000.png"
        image(folder / "images" / split / name)
        known = {"split": split, "image_filename": name, "image_index": 0, **common}
        return [{**known, "question": f"{n}?", "answer": a, "question_index": n} for n, a in enumerate(answers)]

    info = {"split": "train", "license": "CC BY 4.0", "version": "1.0", "questions are": [1, 2]}
    train = rows("train", ["yes", "3", "cylinder"])
    written(folder / "questions" / "CLEVR_train_questions.json", {"info": info, "questions": train})
    validation = {"info": info, "questions": rows("val", ["no"])}
    written(folder / "questions" / "CLEVR_val_questions.json", validation)
    test = [{key: value for key, value in row.items() if key != "answer"} for row in rows("test", ["0"])]
    written(folder / "questions" / "CLEVR_test_questions.json", {"info": info, "questions": test})
    return {"train": [("boolean", "yes"), ("count", "3"), ("exact", "cylinder")], "validation": [("boolean", "no")]}


def clevr_r1v(folder: Path) -> dict[str, Expected]:
    """The counting questions that R1-V and VLM-R1 trained with."""
    row = {"image": struct(1), "problem": "How many items are there?", "solution": "<answer> 3 </answer>"}
    parquet(folder / "data" / "train-00000-of-00001.parquet", [row])
    return {"train": [("count", "3")]}


def mathv360k(folder: Path) -> dict[str, Expected]:
    for name in ("TabMWP/images/1.png", "FigureQA/images/1.png"):
        image(folder / "data_images" / name, len(name))
    hint = "Hint: Please answer the question and provide the final answer at the end.\nQuestion: "
    rows = [
        ("TabMWP/images/1.png", f"{hint}Which fraction?\nChoices:\n(A) 3/11\n(B) 8/11", "The answer is B"),
        ("TabMWP/images/1.png", f"{hint}How much is it? (Unit: $)", "The answer is 1.45"),
        ("FigureQA/images/1.png", f"{hint}Is red above blue?", "The answer is Yes"),
        ("FigureQA/images/1.png", f"{hint}What colour is it?", "The answer is dark blue"),
        ("FigureQA/images/1.png", f"{hint}Why?", "The answer is that nobody of those who were asked could tell"),
    ]
    said = [
        {"id": f"identity_{n}", "image": name, "conversations": [{"from": "human", "value": f"<image>\n{question}"}]}
        for n, (name, question, _) in enumerate(rows)
    ]
    for row, (_, _, answer) in zip(said, rows, strict=True):
        row["conversations"].append({"from": "gpt", "value": answer})
    written(folder / "train_samples_all_tuning.json", said)
    return {"train": [("choice", "B"), ("math", "1.45"), ("boolean", "yes"), ("exact", "dark blue")]}


def llava_cot(folder: Path) -> dict[str, Expected]:
    image(folder / "CLEVR_v1.0" / "images" / "1.png")
    thought = "<SUMMARY> I count. </SUMMARY>\n\n<CAPTION> Cubes. </CAPTION>\n\n<REASONING> 1, 2. </REASONING>\n\n"
    rows = []
    for number, (question, conclusion) in enumerate(
        [
            ("How many?", "2"),
            ("Which is it?\nA. A cube\nB. A ball\nAnswer with the letter.", "A"),
            ("Is it red?", "No."),
            ("Why?", "Because all of the cubes stand in front of a wall that is painted blue."),
        ]
    ):
        turns = [
            {"from": "human", "value": question},
            {"from": "gpt", "value": f"{thought}<CONCLUSION> {conclusion} </CONCLUSION>"},
            {"from": "human", "value": "And now?"},
            {"from": "gpt", "value": f"{thought}<CONCLUSION> 9 </CONCLUSION>"},
        ]
        rows.append({"id": number, "image": "CLEVR_v1.0/images/1.png", "conversations": turns})
    lines(folder / "train.jsonl", rows)
    return {"train": [("math", "2"), ("choice", "A"), ("boolean", "no")]}


def mathvision(folder: Path) -> dict[str, Expected]:
    common = {"image": "images/4.jpg", "decoded_image": struct(4), "solution": None, "level": 2, "subject": "counting"}
    rows = [
        {"id": "4", "question": "Which piece fits?\n<image1>", "options": list("ABCDE"), "answer": "D", **common},
        {"id": "5", "question": "<image1>\nHow many?", "options": ["3", "4", "5"], "answer": "B", **common},
        {"id": "6", "question": "Look at <image1>. The area?", "options": [], "answer": "$\\frac{3}{4}$", **common},
    ]
    parquet(folder / "data" / "test-00000-of-00001-3532b8d3f1b4047a.parquet", rows)
    parquet(folder / "data" / "testmini-00000-of-00001-f8ff70fcb2f29b1d.parquet", rows[:1])
    return {"testmini": [("choice", "D")], "test": [("choice", "D"), ("choice", "B"), ("math", "$\\frac{3}{4}$")]}


def chartqa(folder: Path) -> dict[str, Expected]:
    rows = [
        {"image": struct(1), "query": "How many food items?", "label": ["14"], "human_or_machine": 0},
        {"image": struct(1), "query": "Which one is larger?", "label": ["Lamb"], "human_or_machine": 1},
    ]
    for split in ("train", "val", "test"):
        parquet(folder / "data" / f"{split}-00000-of-00001-e2cd0b7a0f9eb20d.parquet", rows)
    return {split: [("relaxed", "14"), ("relaxed", "Lamb")] for split in ("train", "validation", "test")}


def chartqa_release(folder: Path) -> dict[str, Expected]:
    for split in ("train", "test"):
        image(folder / split / "png" / "1.png")
        row = {"imgname": "1.png", "query": "Which year?", "label": "2013"}
        written(folder / split / f"{split}_human.json", [row])
    return {"train": [("relaxed", "2013")], "test": [("relaxed", "2013")]}


def docvqa(folder: Path) -> dict[str, Expected]:
    common = {"question_types": ["handwritten"], "ucsf_document_id": "pybv0228", "ucsf_document_page_no": "81"}
    row = {"questionId": "337", "question": "What is the date?", "image": struct(1), "docId": 279, **common}
    asked = {**row, "answers": ["1/8/93", "1-8-93"], "data_split": "val"}
    parquet(folder / "DocVQA" / "validation-00000-of-00001.parquet", [asked])
    parquet(folder / "DocVQA" / "test-00000-of-00001.parquet", [{**row, "answers": None, "data_split": "test"}])
    return {"validation": [("anls", ["1/8/93", "1-8-93"])]}


def docvqa_release(folder: Path) -> dict[str, Expected]:
    image(folder / "documents" / "xnbl0037_1.png")
    row = {"questionId": 337, "question": "What is the date?", "image": "documents/xnbl0037_1.png", "docId": 279}
    data = [{**row, "ucsf_document_id": "xnbl0037", "answers": ["1/8/93"], "data_split": "train"}]
    head = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": "train"}
    written(folder / "train_v1.0_withQT.json", {**head, "data": data})
    return {"train": [("anls", ["1/8/93"])]}


FOLDERS: list[tuple[str, Callable[[Path], dict[str, Expected]]]] = [
    ("geometry3k", geometry3k),
    ("mmk12", mmk12),
    ("mm_eureka", mm_eureka),
    ("scienceqa", scienceqa),
    ("clevr", clevr),
    ("clevr", clevr_r1v),
    ("mathv360k", mathv360k),
    ("llava_cot", llava_cot),
    ("mathvision", mathvision),
    ("chartqa", chartqa),
    ("chartqa", chartqa_release),
    ("docvqa", docvqa),
    ("docvqa", docvqa_release),
]
