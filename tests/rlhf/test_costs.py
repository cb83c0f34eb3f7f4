"""The costs of supervised stages that a plan shows, against numbers by hand and files that were really written."""

import re
from pathlib import Path

import pytest

from conf.cli import load_config
from model.config import Flavour, flavour_config
from model.engine.config import OptimizerConfig
from model.engine.local import LocalEngine
from model.engine.planning.machines import GIB, MACHINES, Gpu
from rlhf.planning.costs import disk_line, makers_of, supervised_lines
from rlhf.planning.stages import plan
from rlhf.planning.stages_shown import cost_lines

H200 = MACHINES[Gpu.h200_141]
DENSE = flavour_config(Flavour.sailvl2_2b)


def sft(*overrides: str):
    config, _ = load_config("sft", ["checkpoint=c", "engine.micro_batch_tokens=8192", *overrides])
    return config


ROWS = "data.demonstrations=d"
STREAM = ("data.sources={a: {paths: [x]}}", "data.micro_batches_per_step=125")


def numbers(line: str) -> list[float]:
    return [float(one.replace(",", "")) for one in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", line)]


def test_a_stream_with_a_number_of_updates_is_bounded():
    """FLOPs: 6 for each of the decoder's weights and token would be 1.03e10; attention over long rows adds to that."""
    memory, billion, update, whole = supervised_lines(sft(*STREAM, "max_steps=100"), DENSE, H200, 1, 1)
    assert (
        memory.startswith("1 x H200 SXM 141 GB: ") and "it fits; assumed: micro-batches of 8,192 text tokens" in memory
    )
    assert "no images" in billion and 1.03e19 < numbers(billion)[0] < 2e19
    assert update.startswith(
        "an update: at most 1,024,000 tokens (data.micro_batches_per_step x engine.micro_batch_tok"
    )
    tokens, updates, flops, hours = numbers(whole)
    assert (tokens, updates) == (102_400_000, 100)
    assert flops == pytest.approx(numbers(billion)[0] * 0.1024, rel=0.01)
    assert hours == pytest.approx(numbers(update)[-1] * 100 / 3600, rel=0.05)


def test_updates_of_completions_are_bounded_by_the_models_positions():
    *_, whole = supervised_lines(sft(ROWS, "batch_size=64", "max_steps=10"), DENSE, H200, 1, 1, "maker")
    tokens, flops, hours = numbers(whole)[:3]
    assert tokens == 10 * 64 * 40_960
    packed = sft(ROWS, "batch_size=64", "max_steps=10", "engine.micro_batch_tokens=40960")
    _, billion, as_long = supervised_lines(packed, DENSE, H200, 1, 1, "maker")
    assert flops == numbers(as_long)[1] == pytest.approx(numbers(billion)[0] * tokens / 1e9, rel=0.01)
    assert hours == pytest.approx(numbers(as_long)[2], rel=0.01), "a row of all positions stands alone"
    assert "each takes all 40,960 positions" in whole and whole.endswith("not known: stage maker writes the rows")


@pytest.mark.parametrize("overrides", [(ROWS,), (ROWS, "epochs=3"), STREAM])
@pytest.mark.parametrize(
    ("maker", "reason"), [("longcot_data", "stage longcot_data writes"), ("", "a plan reads no rows")]
)
def test_what_depends_on_rows_that_nobody_read_is_not_known(overrides, maker, reason):
    *_, whole = supervised_lines(sft(*overrides), DENSE, H200, 1, 1, maker)
    assert "not known" in whole and reason in whole and "max_steps would bound" in whole and not numbers(whole)


def test_several_gpus_share_the_memory_and_an_update():
    one = supervised_lines(sft(*STREAM, "max_steps=9"), DENSE, H200, 1, 1)
    eight = supervised_lines(sft(*STREAM, "max_steps=9", "engine=fsdp"), DENSE, H200, 8, 1)
    assert eight[0].startswith("8 x H200") and numbers(eight[0])[3] < 0.5 * numbers(one[0])[3]
    assert numbers(eight[2])[-1] == pytest.approx(numbers(one[2])[-1] * 16 / 125, rel=0.1)  # of 125 micro-batches
    too_small = supervised_lines(sft(ROWS), flavour_config(Flavour.sailvl2_8b), MACHINES[Gpu.l40s_48], 1, 1)
    assert "it does not fit" in too_small[0]
    with pytest.raises(ValueError, match=r"engine\.replicas: expected a divisor of the 8 processes, found 3"):
        supervised_lines(sft(ROWS, "engine=fsdp", "engine.replicas=3"), DENSE, H200, 8, 1)


def test_trl_is_not_estimated():
    assert supervised_lines(sft(ROWS, "trainer=trl"), DENSE, H200, 1, 1)[0].startswith("not estimated: trainer=trl")


class TestDisk:
    def test_it_is_what_is_really_written(self, tiny, tiny_folder, tmp_path):
        config = sft(ROWS, "engine.num_threads=1", "dtype=float32")
        engine = LocalEngine(tiny[0], config.engine, OptimizerConfig(learning_rate=1e-3), 1)
        engine.save(tmp_path)
        checkpoint = sum(path.stat().st_size for path in tmp_path.iterdir())
        model = sum(path.stat().st_size for path in Path(tiny_folder).glob("*.safetensors"))
        shapes = tiny[0].config
        line = disk_line(config, shapes)
        assert numbers(line)[1] == 3 and line.startswith("disk: at most 0.1 GiB: 3 checkpoints of 0.0 (float32 weights")
        from rlhf.planning import costs

        with pytest.MonkeyPatch.context() as patch:  # in bytes, for the tiny model
            patch.setattr(costs, "GIB", 1.0)
            total, count, each, _, keep, final = numbers(disk_line(config, shapes))[:6]  # the fourth is of "float32"
        assert (count, keep) == (3, 2)
        assert each == pytest.approx(checkpoint, rel=0.01) and final == pytest.approx(model, rel=0.01)
        assert total == pytest.approx(3 * checkpoint + model, rel=0.01)

    def test_adapters_held_out_rows_and_exports_count(self):
        plain, adapted = (sft(ROWS, *own) for own in ((), ("adapter=lora",)))
        watched = sft(ROWS, "evaluation.data=e", "run.export_checkpoints=true", "run.keep_checkpoints=4")
        assert numbers(disk_line(adapted, DENSE))[2] < 0.05 * numbers(disk_line(plain, DENSE))[2]
        line = disk_line(watched, DENSE)
        assert "5 checkpoints of" in line and "final and best of" in line and "5 exports of the same size" in line
        half, whole = (numbers(disk_line(sft(ROWS, f"dtype={name}"), DENSE))[5] for name in ("bfloat16", "float32"))
        assert half == pytest.approx(whole / 2, rel=0.03)
        assert numbers(disk_line(plain, DENSE))[2] == pytest.approx(12 * 2_419_400_192 / GIB, rel=0.01)


def test_a_plan_names_the_stage_whose_rows_are_missing():
    config, _ = load_config("pipeline", ["recipe=thinking", "model=sailvl2_2b", "gpus=8", "action=plan"])
    stages, _ = plan(config)
    named = {stage.name: stage for stage in stages}
    lines = cost_lines(config, named["think_fusion"])
    assert lines[0].startswith("8 x H100 SXM 80 GB: ") and "stage fusion_data writes the rows" in lines[2]
    assert lines[-2].startswith(
        "never measured: a supervised stage as a whole; seconds of an engine of several processes"
    )
    assert lines[-1].startswith("disk: at most ") and cost_lines(config, named["rl_mixed"])[-1].startswith("disk: ")
    assert not cost_lines(config, named["longcot_data"])
    assert makers_of(["b/x.jsonl", "a/y.jsonl", "b/z"]) == "a and b"
