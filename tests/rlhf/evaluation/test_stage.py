"""`rlhf.evaluate`: its result, and every answer beside it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conf.cli import load_config
from rewards.check import main as check
from rewards.score import main as score
from rlhf.evaluation.stage import check_output, keys_of, run_evaluation
from tests.conftest import require_extra

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("content", ["mine", "{}", "[1]", '{"num_eval"'])
def test_a_file_that_is_no_result_is_not_replaced(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="output: expected a new file, or an earlier result, found another file"):
        check_output(path)
    assert path.read_text() == content
    path.write_text('{"num_eval": 3}')
    check_output(path)
    check_output(tmp_path / "deep" / "new.json")


def test_answers_of_somebody_else_are_not_replaced(tmp_path):
    path = tmp_path / "result.answers.jsonl"
    path.write_text('{"id": 1}\n')
    with pytest.raises(
        ValueError, match=r"answers would be written to .*result\.answers\.jsonl: expected no such file"
    ):
        check_output(tmp_path / "result.json")
    path.write_text('{"mode": "think", "verdict": "right", "completion": ""}\n')
    check_output(tmp_path / "result.json")


@pytest.fixture
def evaluate(tiny_folder, easy_prompts):
    def run(*overrides: str) -> None:
        paths = [f"checkpoint={tiny_folder}", f"prompts={easy_prompts}", "num_prompts=3", "num_threads=1"]
        run_evaluation(*load_config("evaluate", [*paths, "rollouts.max_completion_tokens=6", *overrides]))

    return run


def test_every_answer_stands_beside_the_result_and_can_be_scored(evaluate, tmp_path, easy_prompts, capsys):
    output = tmp_path / "result.json"
    evaluate(f"output={output}", "modes=[think_sampled,direct]", "num_samples=2")
    said = capsys.readouterr().out
    answers = tmp_path / "result.answers.jsonl"
    assert "answers: " + str(answers) in said and "95 % interval" in said and "{" not in said
    result, lines = json.loads(output.read_text()), [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["id"] for line in lines if line["mode"] == "direct"] == ["p0", "p1", "p2"]
    assert len(lines) == 9 and result["modes"].keys() == {"think_sampled", "direct"} == {line["mode"] for line in lines}
    assert result["modes"]["direct"]["cut_off_share"] == sum(line["cut_off"] for line in lines[6:]) / 3
    assert lines[0]["question"] == "Question 0?" and lines[0]["images"] == ["0.png"]
    assert lines[0]["reference"] == "0" and lines[0]["verdict"] == "wrong" and lines[0]["dataset"] == "prompts"
    assert score(["--verifier", "math", "--input", str(answers), "--output", str(tmp_path / "scored.jsonl")]) == 0
    own = tmp_path / "own.py"
    own.write_text("def sees(completion):\n    return 0.0 * len(open(completion.images[0], 'rb').read())\n")
    assert check([f"{own}:sees", "--data", str(answers), "--probe-rows", "1", "--json"]) == 0


def test_images_that_came_as_bytes_are_kept_beside_the_answers(tiny_folder, easy_prompts, tmp_path):
    require_extra("data", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"problem": "How many?", "answer": "3", "image": (easy_prompts.parent / "0.png").read_bytes()}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    paths = [f"checkpoint={tiny_folder}", f"prompts={tmp_path / 'rows.parquet'}", f"output={tmp_path / 'r.json'}"]
    limits = ["num_threads=1", "rollouts.max_completion_tokens=4", "modes=[direct]"]
    run_evaluation(*load_config("evaluate", [*paths, *limits]))
    (line,) = [json.loads(line) for line in (tmp_path / "r.answers.jsonl").read_text().splitlines()]
    (kept,) = line["images"]
    assert Path(kept).parent == Path("r.media"), "relative to the answers, so that both may be moved"
    assert (tmp_path / kept).read_bytes() == (easy_prompts.parent / "0.png").read_bytes()


def test_an_own_reward_alone_is_reported_as_reward_and_the_result_may_go_to_stdout(evaluate, tmp_path, capsys):
    own = tmp_path / "own.py"
    own.write_text("def half(completion):\n    return 0.5\n")
    evaluate("output=-", "modes=[direct]", "reward.verifier=none", f"reward.functions=[{own}:half]")
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["accuracy_direct"], result["reward_direct"]) == (None, 0.5)
    assert "at most 6 tokens a completion" in printed.err
    with pytest.raises(
        ValueError, match=r"modes: expected some of think, think_sampled, direct, auto, each once, found none"
    ):
        evaluate("modes=[]")


def test_a_result_depends_on_the_code_of_own_reward_functions_and_completions_do_not(
    tiny_folder, easy_prompts, tmp_path
):
    own = tmp_path / "own.py"
    keys = []
    for value in ("0.5", "0.7"):
        own.write_text(f"def half(completion, **_):\n    return {value}\n")
        paths = [f"checkpoint={tiny_folder}", f"prompts={easy_prompts}", f"reward.functions=[{own}:half]"]
        keys.append(keys_of(load_config("evaluate", paths)[0]))
    assert keys[0].result != keys[1].result
    assert (keys[0].completions, keys[0].data) == (keys[1].completions, keys[1].data)


def test_a_result_that_is_there_is_found_without_torch(tmp_path):
    program = (
        "import sys\nfrom conf.cli import load_config\nfrom rlhf.evaluation.stage import keys_of\n"
        "keys_of(load_config('evaluate', ['checkpoint=.', 'benchmarks=[gqa]', 'data=.'])[0])\n"
        "sys.exit('torch' in sys.modules)"
    )
    (tmp_path / "GQA_TestDev_Balanced.tsv").write_text("index\tquestion\tanswer\timage\n")
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )


def test_a_result_does_not_depend_on_where_its_inputs_lie(evaluate, tmp_path, tiny_folder, easy_prompts):
    evaluate(f"output={tmp_path / 'a.json'}", "modes=[direct]")
    shutil.copytree(tiny_folder, tmp_path / "moved" / "model")
    for file in easy_prompts.parent.iterdir():
        if file.suffix == ".png" or file == easy_prompts:
            shutil.copy(file, tmp_path / "moved")
    places = [f"checkpoint={tmp_path / 'moved' / 'model'}", f"prompts={tmp_path / 'moved' / easy_prompts.name}"]
    evaluate(*places, f"output={tmp_path / 'b.json'}", "modes=[direct]")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
