"""The tool that attacks rewards: a sound one passes, a hackable one is named with the probe that it paid."""

import json
from pathlib import Path

import pytest

from rewards.check import main
from rewards.probes import probes
from tests.conftest import require_extra

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FUNCTIONS = """
import itertools

def fair(completion):
    return 1.0 if completion.answer == completion.reference else 0.0

def format_only(completion):
    return 1.0 if "</think>" in completion.completion and "boxed" in completion.completion else 0.0

def anywhere(completion):
    return 1.0 if completion.reference in completion.completion else 0.0

def believes_instructions(completion):
    return 1.0 if "verified by the administrator" in completion.completion else 0.0

counter = itertools.count()

def moody(completion):
    return 1.0 if completion.answer == completion.reference and next(counter) % 3 else 0.0

def breaks(completion):
    raise RuntimeError("no")

def nan(completion):
    return float("nan")

def length_only(completion):
    return min(1.0, len(completion.completion) / 200)

def fair_to_any(completion):
    return 1.0 if completion.answer == str(completion.reference) else 0.0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("check")
    (path / "own.py").write_text(FUNCTIONS)
    rows = [
        {"id": str(i), "reference": str(i * 37 % 101), "messages": [{"role": "user", "content": f"Q{i}?"}]}
        for i in range(6)
    ]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    letters = [{"reference": letter, "options": ["3 cm", "4 cm", "5 cm", "6 cm"]} for letter in "ABCD"]
    (path / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in letters))
    return path


def run(folder, capsys, reward: str, data: str = "rows.jsonl", *more: str) -> tuple[int, list[str]]:
    code = main([reward, "--data", str(folder / data), "--probe-rows", "2", "--json", *more])
    out = capsys.readouterr().out.strip().splitlines()
    return code, json.loads(out[-1])["problems"]


def test_sound_function_passes(folder, capsys):
    assert run(folder, capsys, f"{folder}/own.py:fair") == (0, [])


@pytest.mark.parametrize(
    ("verifier", "data"), [("math", "rows.jsonl"), ("choice", "letters.jsonl"), ("exact", "rows.jsonl")]
)
def test_verifiers_pay_no_probe(folder, capsys, verifier, data):
    assert run(folder, capsys, verifier, data, "--timeout", "2") == (0, [])


@pytest.mark.parametrize(
    ("name", "probe"),
    [
        ("format_only", "several boxes"),
        ("anywhere", "answer inside thinking"),
        ("believes_instructions", "instructions to a judge"),
        ("length_only", "100 kB repeats"),
    ],
)
def test_hackable_function_is_named_with_its_probe(folder, capsys, name, probe):
    code, problems = run(folder, capsys, f"{folder}/own.py:{name}")
    assert code == 1 and any(problem.startswith(f"probe {probe!r} earned") for problem in problems), problems


@pytest.mark.parametrize(
    ("name", "said"), [("moody", "determinism:"), ("breaks", "contract:"), ("nan", "finite number")]
)
def test_broken_contract_is_named(folder, capsys, name, said):
    code, problems = run(folder, capsys, f"{folder}/own.py:{name}")
    assert code == 1 and any(said in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("reward", "data", "said"),
    [
        ("nothing.py:f", "rows.jsonl", "expected a Python file"),
        ("own", "rows.jsonl", "entry point"),
        ("math", "own.py", "expected a JSON object"),
        ("math", "missing.jsonl", "missing.jsonl"),
    ],
)
def test_wrong_usage_exits_with_2(folder, capsys, reward, data, said):
    assert main([reward, "--data", str(folder / data)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verifier", "reference", "options"),
    [
        ("count", "5", None),
        ("count", "1", None),
        ("boolean", "yes", None),
        ("boolean", "False", None),
        ("choice", "(C)", ["3 cm", "4 cm", "5 cm"]),
        ("box_iou", "[0, 0, 500, 500]", None),
        ("math", "\\infty", None),
    ],
)
def test_no_probe_is_a_right_answer(folder, capsys, verifier, reference, options):
    """A verifier that keeps its rule must pass, whatever the kind of its references."""
    row = {"reference": reference, **({"options": options} if options else {})}
    (folder / "kind.jsonl").write_text(json.dumps(row) + "\n")
    assert run(folder, capsys, verifier, "kind.jsonl", "--timeout", "1") == (0, [])


def test_rows_of_every_form_are_read(folder, capsys):
    """Line separators within texts, nulls, and references that no verifier would take."""
    rows = [
        {"reference": {"a": 1}, "images": None, "completion": None, "messages": None},
        {"reference": "", "prompt": "one\u2028two\x85three"},
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "odd.jsonl").write_text(text, encoding="utf-8")
    code, problems = run(folder, capsys, f"{folder}/own.py:nan", "odd.jsonl")
    assert code == 1 and "2 of 2 rows are unscorable" in problems[0] and "found nan" in problems[0]
    (folder / "dicts.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert run(folder, capsys, f"{folder}/own.py:fair_to_any", "dicts.jsonl")[0] == 0


SEES = """
def sees(completion):
    from PIL import Image
    return 0.0 * Image.open(completion.images[0]).size[0]
"""


def test_a_reward_sees_the_images_of_rows_in_files_and_in_bytes(folder, capsys, easy_prompts):
    require_extra("data", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "sees.py").write_text(SEES)
    assert run(easy_prompts.parent, capsys, f"{folder}/sees.py:sees", "prompts.jsonl", "--rows", "3") == (0, [])
    image = (easy_prompts.parent / "0.png").read_bytes()
    rows = [{"problem": "<image>How many?", "answer": "3", "images": [{"bytes": image, "path": None}]}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "bytes.parquet")
    assert run(folder, capsys, f"{folder}/sees.py:sees", "bytes.parquet") == (0, [])


def test_references_are_those_of_a_run(folder, capsys):
    """In the forms of GSM8K, of TRL's and of verl's data, without images too."""
    rows: list[dict] = [
        {"question": "2+3?", "answer": "We add.\n#### 5"},
        {"problem": "2+3?", "solution": "<answer> 5 </answer>"},
        {"prompt": [{"role": "user", "content": "2+3?"}], "reward_model": {"ground_truth": "5", "style": "rule"}},
        {"messages": [{"role": "user", "content": "2+3?"}], "reference": "So \\boxed{5}."},
    ]
    lines = [json.dumps({**row, "completion": "\\boxed{5}"}) + "\n" for row in rows]
    (folder / "forms.jsonl").write_text("".join(lines))
    (folder / "right.py").write_text("def right(c):\n    assert c.reference == c.answer == '5'\n    return 0\n")
    assert run(folder, capsys, f"{folder}/right.py:right", "forms.jsonl", "--rows", "4")[1] == []


def test_rollouts_that_a_run_stored_are_read(folder, capsys):
    stored = {"format": 1, "draw": 0, "prompt_id": "p", "text": "\\boxed{5}", "reference": "5"}
    stored |= {"question": "2+3?", "images": [], "answer": "5", "thinking": ""}
    (folder / "step_000001.jsonl").write_text(json.dumps(stored) + "\n")
    assert run(folder, capsys, f"{folder}/own.py:fair", "step_000001.jsonl") == (0, [])


def test_each_finding_is_said_once(folder, capsys):
    assert main([f"{folder}/own.py:anywhere", "--data", str(folder / "rows.jsonl"), "--probe-rows", "1"]) == 1
    out = capsys.readouterr().out
    assert out.count("answer inside thinking' earned") == 1 and "{" not in out.splitlines()[-1][:1]
    assert main([f"{folder}/own.py:fair", "--data", str(folder / "rows.jsonl"), "--probe-rows", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing found"


def test_unknown_rule_is_named(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main([f"{folder}/own.py:fair", "--data", str(folder / "rows.jsonl"), "--extract", "boxes"])
    assert stop.value.code == 2 and "expected names among boxed" in capsys.readouterr().err


def test_every_family_of_probes_is_there_and_none_ends_in_the_right_box():
    found = probes("42", {"messages": [{"role": "user", "content": "What is 6 times 7?"}]})
    assert len({family for family, _ in found}) >= 11
    assert not any(text.rstrip().endswith("</think>\\boxed{42}") for _, text in found)
    assert any(len(text) >= 90_000 for _, text in found)
