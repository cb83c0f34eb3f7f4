"""The typed schema of every entry point, registered with Hydra. YAML may only set what stands here."""

from hydra.core.config_store import ConfigStore

from model.pretrain.config import PretrainConfig
from rlhf.config import DapoConfig, EvaluateConfig, GrpoConfig, PipelineConfig, RlConfig
from sft.config import SftConfig

ENTRIES: dict[str, type] = {
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "rlhf": RlConfig,
    "evaluate": EvaluateConfig,
    "pipeline": PipelineConfig,
}

ALGORITHM_CONFIGS: dict[str, type] = {"grpo": GrpoConfig, "dapo": DapoConfig}


def register() -> None:
    """Make the schemas known; calling it again changes nothing."""
    store = ConfigStore.instance()
    for name, schema in ENTRIES.items():
        store.store(name=f"{name}_schema", node=schema)
    for name, schema in ALGORITHM_CONFIGS.items():
        store.store(group="algorithm", name=f"{name}_schema", node=schema)
