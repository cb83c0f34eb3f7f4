"""Rollouts that trackers show, and where a pipeline's stages show theirs."""

import pytest
from PIL import Image

from conf.cli import load_config
from rlhf.planning.graph import Graph
from rlhf.planning.stages import plan
from rlhf.shown import LONGEST_SIDE, samples_of
from tests.rlhf.reporting.folders import rollout

STAGES = "stages=[{name: a, command: model.pretrain.train, recipe: quickstart, inputs: {data.path: p.jsonl}}]"


def planned(tmp_path, *more: str):
    config, _ = load_config(
        "pipeline", [STAGES, "model=tiny", "stages.a.model=tiny", f"run.dir={tmp_path}", f"data={tmp_path}", *more]
    )
    return config, plan(config)[0][0]


def test_the_best_and_the_worst_of_different_prompts_are_shown_with_small_images(tmp_path):
    Image.new("L", (600, 300)).save(tmp_path / "1.png")
    stored = [
        rollout(draw, sample, right=draw == 2, dropped="", image="1.png") for draw in range(4) for sample in (0, 1)
    ]
    stored[0] |= {"images": ["gone.png", "1.png"], "reward": None, "answer": None}
    shown = samples_of(stored, tmp_path)
    assert [one.title.partition(",")[0] for one in shown[:2]] == ["p2", "p0"] and len({one.title for one in shown}) == 4
    assert shown[1].reward is None and shown[1].answer == "(none found)"
    assert [image.size for image in shown[1].images] == [(LONGEST_SIDE, LONGEST_SIDE // 2)]
    assert samples_of([], tmp_path) == []


@pytest.mark.parametrize(("given", "expected"), [([], []), (["run.trackers=[]"], ["run.trackers=[]"])])
def test_a_pipelines_trackers_are_those_of_its_stages(tmp_path, given, expected):
    _, stage = planned(tmp_path, *given)
    assert [override for override in stage.overrides if override.startswith("run.trackers")] == expected


def test_where_a_finished_stage_was_shown_is_no_setting_of_it(tmp_path):
    def changes(*more: str) -> list[str]:
        config, stage = planned(tmp_path, *more)
        graph = Graph(config, [stage], {})
        if not graph.record(graph.nodes[0]):
            graph.begin(graph.nodes[0])
        return graph.changes(graph.nodes[0])

    assert changes() == changes("run.trackers=[]") == []
    assert changes("stages.a.report.every=5", "stages.a.run.trackers=[tensorboard]") == []
    assert changes("stages.a.optimizer.weight_decay=0.5") == ["other settings: optimizer.weight_decay=0.5"]
