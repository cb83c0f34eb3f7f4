"""The typed schema of every entry point, registered with Hydra. YAML may only set what stands here."""

from hydra.core.config_store import ConfigStore

from model.config import AssembleConfig, ChatConfig, DescribeConfig
from model.pretrain.config import PretrainConfig
from rlhf.config import DapoConfig, EvaluateConfig, GrpoConfig, PipelineConfig, RlConfig
from sft.config import SftConfig

ENTRIES: dict[str, type] = {
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "rlhf": RlConfig,
    "evaluate": EvaluateConfig,
    "pipeline": PipelineConfig,
    "describe": DescribeConfig,
    "assemble": AssembleConfig,
    "chat": ChatConfig,
}

MODULES: dict[str, str] = {
    "pretrain": "model.pretrain.train",
    "sft": "sft.train",
    "rlhf": "rlhf.train",
    "evaluate": "rlhf.evaluate",
    "pipeline": "rlhf.pipeline",
    "describe": "model.describe",
    "assemble": "model.assemble",
    "chat": "model.chat",
}

ALGORITHM_CONFIGS: dict[str, type] = {"grpo": GrpoConfig, "dapo": DapoConfig}


def register() -> None:
    """Make the schemas known; calling it again changes nothing."""
    store = ConfigStore.instance()
    for name, schema in ENTRIES.items():
        store.store(name=f"{name}_schema", node=schema)
    for name, schema in ALGORITHM_CONFIGS.items():
        store.store(group="algorithm", name=f"{name}_schema", node=schema)
