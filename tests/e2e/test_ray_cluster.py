"""RL with samplers on two Ray nodes of this host: the same run as with one sampler in the trainer's process."""

import json
import secrets

import pytest
from safetensors.torch import load_file

from conf.cli import load_config
from rlhf.stage import run_stage
from tests.conftest import require_extra
from tests.rlhf.test_train import LengthRubric


@pytest.fixture
def cluster(monkeypatch):
    """With a token, as launch/ray_node.sh starts one."""
    require_extra("ray", "ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    from ray._private.authentication_test_utils import reset_auth_token_state
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    monkeypatch.undo()
    reset_auth_token_state()  # Ray holds the token for the whole process


@pytest.mark.slow
def test_two_nodes_give_the_run_of_one_process(cluster, tiny_folder, digits_folder, tmp_path):
    required = [f"checkpoint={tiny_folder}", f"prompts={digits_folder / 'train.jsonl'}", "algorithm.group_filter=none"]
    limits = ["trainer.max_steps=6", "trainer.groups_per_step=6", "trainer.mini_batch_size=24", "trainer.max_draws=12"]
    sizes = ["algorithm.group_size=4", "rollouts.max_completion_tokens=16", "engine.num_threads=1"]
    pools = {
        "alone": ["rollouts.pool.placement=trainer", "rollouts.pool.workers=1"],
        "nodes": [
            "rollouts.pool.placement=ray",
            "rollouts.pool.workers=2",
            f"rollouts.pool.ray_address={cluster.address}",
        ],
    }
    for name, pool in pools.items():
        run_stage(
            *load_config(
                "rlhf", ["recipe=quickstart", *required, *limits, *sizes, *pool, f"run.dir={tmp_path / name}"]
            ),
            LengthRubric,
        )
    alone, nodes = (load_file(tmp_path / name / "final" / "model.safetensors") for name in pools)
    assert all(alone[name].equal(nodes[name]) for name in alone)
    begin = load_file(tiny_folder / "model.safetensors")
    assert not any(begin[name].equal(alone[name]) for name in begin)  # it was trained at all
    texts = [(tmp_path / name / "ledger.jsonl").read_text() for name in pools]
    assert texts[0] == texts[1] and len(texts[0].splitlines()) == 36
    lines = (tmp_path / "nodes" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["sampler_gap/max"] < 1e-4 for line in lines)
