"""The loss on held-out rows: what it is, which weights are kept, and that a run goes on with what it knew."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.batch import Row, pack_rows
from model.checkpoint import build_flavour, load_model
from model.config import Flavour
from model.data.bad_rows import BadRows
from model.engine.config import EngineConfig, HeldOutConfig, OptimizerConfig, SupervisedConfig
from model.engine.local import LocalEngine
from model.held_out import HeldOut
from model.pretrain.config import PretrainConfig, PretrainDataConfig
from model.run.config import RunConfig
from model.run.folder import RunFolder
from tests.rlhf.prompt_data import write_jsonl


class Rows:
    """A source of text rows."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows, self.bad_rows = rows, BadRows(0)

    def __len__(self) -> int:
        return len(self.rows)

    def build(self, index: int) -> Row:
        return self.rows[index]

    def length(self, index: int) -> int:
        return self.rows[index].num_tokens


@pytest.fixture
def engine():
    model, processor = build_flavour(Flavour.tiny, 3)
    return LocalEngine(model, EngineConfig(num_threads=1), OptimizerConfig(learning_rate=1e-3), 10), processor


def settings(micro_batch_tokens: int = 100, **evaluation: int) -> SupervisedConfig:
    return SupervisedConfig(
        optimizer=OptimizerConfig(learning_rate=1e-3),
        engine=EngineConfig(num_threads=1, micro_batch_tokens=micro_batch_tokens),
        evaluation=HeldOutConfig(**evaluation),  # pyright: ignore[reportArgumentType]
        run=RunConfig("r"),
    )


def texts(processor, *words: str) -> Rows:
    return Rows([Row([1, 2], [processor.completion(word)]) for word in words])


def test_the_loss_is_the_mean_over_all_tokens_however_rows_are_packed(engine):
    engine, processor = engine
    rows = texts(processor, "a", "three words here", "and some more of them")
    scores = [engine.logprobs([pack_rows([row], processor.placeholder_id, 32)])[0].logprobs for row in rows.rows]
    wanted = -torch.cat(scores).mean().item()
    for budget in (4, 10_000):
        held_out = HeldOut(settings(budget), engine, processor, rows)  # pyright: ignore[reportArgumentType]
        nll, tokens, num_rows = held_out._score(rows)  # pyright: ignore[reportArgumentType]
        assert nll / tokens == pytest.approx(wanted, rel=1e-5) and num_rows == 3  # fp32 sums in another order
    first = HeldOut(settings(100, num_rows=1), engine, processor, rows)  # pyright: ignore[reportArgumentType]
    assert first._score(rows)[2] == 1  # pyright: ignore[reportArgumentType]


def test_max_steps_and_epochs():
    def config(**given: float) -> SupervisedConfig:
        return SupervisedConfig(**given, optimizer=OptimizerConfig(learning_rate=1e-3), run=RunConfig("r"))  # pyright: ignore[reportArgumentType]

    assert [config(**given).steps_for(7) for given in ({}, {"epochs": 2.5}, {"max_steps": 3})] == [7, 18, 3]
    with pytest.raises(ValueError, match="max_steps, epochs: expected one of both, found 3 and 2"):
        config(max_steps=3, epochs=2)
    with pytest.raises(ValueError, match="epochs: expected 0 or more"):
        config(epochs=-1)


class TestContinuedPretraining:
    @pytest.fixture
    def config(self, tmp_path, tiny_folder):
        captions = [{"caption": f"a picture of {number % 3}"} for number in range(12)]
        train, held = write_jsonl(tmp_path / "web.jsonl", captions), write_jsonl(tmp_path / "held.jsonl", captions[:3])

        def make(**changes) -> PretrainConfig:
            given = {
                "checkpoint": str(tiny_folder),
                "epochs": 2,
                "data": PretrainDataConfig(path=str(train), mixture={"web": 4}),
                "optimizer": OptimizerConfig(learning_rate=3e-3),
                "engine": EngineConfig(num_threads=1),
                "evaluation": HeldOutConfig(data=str(held), every=2),
                "run": RunConfig(dir=str(tmp_path / "run"), save_every=3),
            }
            return PretrainConfig(**{**given, **changes})

        return make

    def test_goes_on_from_a_checkpoint_and_keeps_the_best(self, config, tmp_path, tiny_folder, capsys):
        from model.pretrain.stage import run_stage

        run_stage(config(), "a: 1")
        run, said = tmp_path / "run", capsys.readouterr().out
        assert "data.path: 12 rows (median" in said and "text <- caption\n" in said
        assert "steps: 6 (2 passes over the rows of 3 steps), learning rate 0.003" in said
        evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
        assert [one["step"] for one in evaluations] == [0, 2, 4, 6]
        losses = [one["nll_per_token"] for one in evaluations]
        assert losses[-1] < losses[0] and evaluations[0]["rows"] == 3
        metrics = {one["step"]: one for one in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
        assert metrics[6]["eval/nll_per_token"] == losses[-1] and "eval/best" not in metrics[5]
        best = min(losses)
        done = json.loads((run / "done.json").read_text())
        assert done == {"steps": 6, "best_nll_per_token": best, "best_step": evaluations[losses.index(best)]["step"]}
        final_line = next(line for line in said.splitlines() if line.startswith("pretrain 6/6"))
        assert f"held out {losses[-1]:.3f} (best {best:.3f} at step {done['best_step']})" in final_line
        start, final = (load_model(folder)[0].state_dict() for folder in (tiny_folder, run / "final"))
        assert any(not torch.equal(start[name], final[name]) for name in start)
        assert (run / "best" / "model.safetensors").is_file()
        assert f"best in the held-out evaluations: {run / 'best'}\nmodel: {run / 'final'}\nnext: " in said

    def test_a_run_that_is_given_more_epochs_is_one_that_had_them_from_the_beginning(self, config, tmp_path):
        from model.pretrain.stage import run_stage

        for folder, epochs in (("short", 1), ("short", 2), ("long", 2)):
            run = RunConfig(dir=str(tmp_path / folder))
            run_stage(config(epochs=epochs, run=run, evaluation=HeldOutConfig()), f"epochs: {epochs}")
        weights = [(tmp_path / name / "final/model.safetensors").read_bytes() for name in ("short", "long")]
        assert weights[0] == weights[1] and json.loads((tmp_path / "short/done.json").read_text()) == {"steps": 6}

    def test_the_speed_of_a_step_is_that_of_its_rows_and_its_update(self, config, tmp_path, monkeypatch):
        """A clock that goes on by 1 when it is read, and by 1,000 in an evaluation."""
        clock, own = [0.0], HeldOut.evaluate_if_due

        def read() -> float:
            clock[0] += 1
            return clock[0]

        def slow(*given):
            clock[0] += 1000
            return own(*given)

        monkeypatch.setattr("model.supervised.time", SimpleNamespace(monotonic=read))
        monkeypatch.setattr(HeldOut, "evaluate_if_due", slow)
        from model.pretrain.stage import run_stage

        run_stage(config(), "{}")
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert [one["time/left_s"] for one in lines] == [len(lines) - one["step"] for one in lines]
        assert [one["time/tokens_per_s"] for one in lines] == [one["tokens"] for one in lines]

    def test_one_of_model_and_checkpoint(self, config):
        with pytest.raises(ValueError, match=r"model: expected a flavour .* or checkpoint=DIR"):
            config(checkpoint="")
        with pytest.raises(ValueError, match=r"model, checkpoint: expected one of both, found tiny .* set model=null"):
            config(model=Flavour.tiny)


def test_best_weights_are_of_the_lowest_loss_and_survive_a_restart(engine, tmp_path):
    engine, processor = engine
    rows = texts(processor, "a word")
    config = settings(every=1)
    with RunFolder(RunConfig(dir=str(tmp_path / "run")), "a: 1") as run:
        held_out = HeldOut(config, engine, processor, rows)  # pyright: ignore[reportArgumentType]
        losses = iter([2.0, 1.0, 3.0])
        held_out._score = lambda source: (next(losses), 1, 1)
        run.restore(engine)
        assert [held_out.evaluate_if_due(step, 9, run)["eval/best"] for step in range(2)] == [2.0, 1.0]
        written = (run.folder / "best" / "model.safetensors").stat().st_mtime_ns
        again = HeldOut(config, engine, processor, rows)  # pyright: ignore[reportArgumentType]
        again.restore(held_out.state())
        again._score = held_out._score
        assert again.evaluate_if_due(2, 9, run) == {"eval/nll_per_token": 3.0, "eval/best": 1.0}
        assert again.summary == {"best_nll_per_token": 1.0, "best_step": 1}
        assert (run.folder / "best" / "model.safetensors").stat().st_mtime_ns == written


def test_without_held_out_rows_nothing_is_said(engine, tmp_path):
    engine, processor = engine
    held_out = HeldOut(settings(), engine, processor, None)
    with RunFolder(RunConfig(dir=str(tmp_path / "run")), "a: 1") as run:
        held_out.start(0, run)
        assert held_out.evaluate_if_due(50, 50, run) == {} and held_out.shown == "" and held_out.summary == {}
    assert not (Path(tmp_path) / "run" / "best").exists()
