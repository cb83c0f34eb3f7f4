"""`recipe=sail_rl`: its values, a few steps on a tiny model with a judge, and evaluation as the model judges."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conf.cli import load_config
from model.interface import AUTO_INSTRUCTION, Mode
from model.processing.tokenizer import Tokenizer
from rewards.config import Combine
from rlhf.algorithms.config import GroupFilter
from rlhf.config import EvaluationConfig, EvaluationMode
from rlhf.evaluation.stage import evaluate_folder
from rlhf.prompts import longest_mode
from rlhf.stage import run_stage

YES, NO = '<judge>{"requires_reasoning": true}</judge>', '<judge>{"requires_reasoning": false}</judge>'
SAID = (f"{YES}<think>I see</think>\\boxed{{1}}", f"{NO}\\boxed{{1}}", f"{NO} is it \\boxed{{2}}", "nothing")


@pytest.fixture
def speaking(monkeypatch):
    """Completions of random tokens read as completions of mode auto: which one is said by the sum of the ids."""
    decode = Tokenizer.decode

    def said(self, ids, **options):
        listed = list(ids)
        return SAID[sum(listed) % len(SAID)] if len(listed) <= 6 and not options else decode(self, ids, **options)

    monkeypatch.setattr(Tokenizer, "decode", said)


@pytest.fixture
def prompts(easy_prompts) -> Path:
    """All answers are 1; a third of the rows are hard, a third easy, and of the others only the judge knows."""
    rows = [json.loads(line) for line in easy_prompts.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["reference"] = "1"
        if number % 3 < 2:
            row["requires_reasoning"] = number % 3 == 0
    easy_prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return easy_prompts


@pytest.fixture
def judge():
    """The address of a judge that finds every thought grounded, coherent and not consistent, and every question
    easy."""

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            instructions = body["messages"][0]["content"]
            checks = {"coherent": True, "grounded": True, "consistent": False}
            said = checks if "coherent" in instructions else {"requires_reasoning": False}
            content = json.dumps({"marker": instructions.split('"marker": "')[1].split('"')[0], **said})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": content}}]}).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_the_recipe_has_the_papers_values():
    config, _ = load_config("rlhf", ["recipe=sail_rl", "checkpoint=x", "prompts=y"])
    algorithm, trainer, limits = config.algorithm, config.trainer, config.rollouts
    assert config.mode is Mode.auto and algorithm.name == "dapo"
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.kl.coefficient) == (0.20, 0.28, 0.0)
    assert (config.optimizer.learning_rate, algorithm.group_size, trainer.groups_per_step) == (1e-6, 5, 256)
    assert (limits.max_prompt_tokens, limits.max_completion_tokens) == (16384, 4096)
    assert config.reward.combine is Combine.product_plus_format and config.reward.format_weight == 0.1
    assert config.reward.multiplied(config.reward.weights) == {"answer", "reasoning", "judgement"}
    assert algorithm.group_filter is GroupFilter.reward_spread  # equal answers still teach when to think
    assert config.evaluation.modes[0] is config.evaluation.metric is EvaluationMode.auto


def test_what_does_not_go_together_is_refused_by_name():
    with pytest.raises(ValueError, match="mode: expected think or auto, found direct"):
        load_config("rlhf", ["recipe=sail_rl", "checkpoint=x", "prompts=y", "mode=direct"])
    with pytest.raises(ValueError, match=r"evaluation.metric: expected one of evaluation.modes \(think, direct\)"):
        EvaluationConfig(modes=[EvaluationMode.think, EvaluationMode.direct], metric=EvaluationMode.auto)
    with pytest.raises(ValueError, match=r"evaluation.modes: expected some of .*, each once, found none"):
        EvaluationConfig(modes=[])
    assert longest_mode([EvaluationMode.direct]) is Mode.think
    assert longest_mode(EvaluationMode) is Mode.auto


def test_a_few_steps_reward_as_worked_by_hand(tiny_folder, prompts, judge, speaking, tmp_path, capsys):
    """The reward of every stored rollout is that of its parts, and held-out prompts are answered in mode auto."""
    endpoint = f"{{base_url: '{judge}', model: m, requests_per_minute: 60000, cache: ''}}"
    overrides = [
        *("recipe=sail_rl", f"checkpoint={tiny_folder}", f"prompts={prompts}", f"run.dir={tmp_path / 'run'}"),
        *("trainer.max_steps=2", "trainer.groups_per_step=2", "trainer.max_draws=6", "trainer.mini_batch_size=10"),
        *("algorithm.overlong.buffer=2", "rollouts.max_prompt_tokens=400", "rollouts.max_completion_tokens=6"),
        *("engine.num_threads=1", "engine.micro_batch_tokens=4096", "reward.num_workers=1"),
        *(f"reward.options.reasoning={endpoint}", f"reward.options.judgement={endpoint}"),
        *(f"evaluation.prompts={prompts}", "evaluation.every=2", "evaluation.num_prompts=6", "evaluation.modes=[auto]"),
    ]
    run_stage(*load_config("rlhf", overrides))
    assert "reward: (answer (math) x reasoning x judgement) x 0.9 + format x 0.1" in capsys.readouterr().out
    rollouts = [json.loads(line) for file in (tmp_path / "run/rollouts").iterdir() for line in file.open()]
    assert {one["prompt_mode"] for one in rollouts} == {"auto"} and {one["status"] for one in rollouts} == {"ok"}
    by_text = {text: {round(one["reward"], 6) for one in rollouts if one["text"] == text} for text in SAID}
    assert by_text[SAID[0]] <= {0.7, 0.1}  # 0.9 x 2/3 + 0.1
    assert by_text[SAID[1]] <= {1.0, 0.1}
    assert by_text[SAID[2]] <= {0.0} and by_text[SAID[3]] <= {0.0} and len(set().union(*by_text.values())) >= 3
    for one in rollouts:
        parts = one["parts"]
        factors = [parts["answer"], parts["judgement"], 1.0 if parts["reasoning"] is None else parts["reasoning"]]
        product = factors[0] * factors[1] * factors[2]
        assert one["reward"] == pytest.approx(0.9 * product + 0.1 * parts["format"])
        assert (parts["reasoning"] is None) is (one["text"] in SAID[1:3])
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert {"reward/judgement", "reward/reasoning", "not_applicable/reasoning"} <= metrics[0].keys()
    evaluations = [json.loads(line) for line in (tmp_path / "run/evaluations.jsonl").open()]
    assert len(evaluations) == 2 and list(evaluations[0]["modes"]) == ["auto"]
    assert evaluations[0]["thought_share"] is not None and "eval/thought_share" in metrics[-1]


def test_evaluation_asks_as_the_model_judges_and_says_who_thought(tiny_folder, prompts, speaking, tmp_path, capsys):
    output = tmp_path / "result.json"
    overrides = [
        *(f"checkpoint={tiny_folder}", f"prompts={prompts}", f"output={output}", "modes=[auto,direct]"),
        *("rollouts.max_prompt_tokens=400", "rollouts.max_completion_tokens=6", "num_threads=1"),
    ]
    result = evaluate_folder(load_config("evaluate", overrides)[0])
    lines = [json.loads(line) for line in (tmp_path / "result.answers.jsonl").open()]
    auto = [line for line in lines if line["mode"] == "auto"]
    assert len(auto) == 12 and len(lines) == 24 and not any("judgement" in line for line in lines if line not in auto)
    thought = [line for line in auto if line["completion"] == SAID[0]]
    found = result["modes"]["auto"]
    assert found["thought_share"] == result["thought_share"] == len(thought) / 12
    assert found["accuracy_with_thought"] == (1.0 if thought else None)
    others = [line for line in auto if line not in thought]
    right = sum(line["verdict"] == "right" for line in others)
    assert found["accuracy_without_thought"] == (right / len(others) if others else None)
    assert found["mode_obedience"] == sum(line["completion"] in SAID[:3] for line in auto) / 12
    assert found["format_rate"] == sum(line["completion"] in SAID[:2] for line in auto) / 12
    assert "thought_share" not in result["modes"]["direct"]
    assert result["protocols"]["auto"]["prompt"]["instruction"] == AUTO_INSTRUCTION
    assert all(line["judgement"]["thought"] == (line in thought) for line in auto)
