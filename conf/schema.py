"""The typed schema of every entry point, registered with Hydra. YAML may only set what stands here."""

from hydra.core.config_store import ConfigStore

from model.chat.config import ChatConfig
from model.config import AssembleConfig, DescribeConfig, ExportConfig
from model.data.convert.config import ConvertConfig
from model.engine.config import ENGINE_CONFIGS
from model.lora.config import ADAPTER_CONFIGS
from model.pretrain.config import PretrainConfig
from model.pretrain.probes.config import ExpertLoadConfig, ProbeConfig
from rlhf.algorithms.config import ALGORITHM_CONFIGS, CustomConfig
from rlhf.config import TRAINER_CONFIGS, PipelineConfig, RlConfig
from rlhf.evaluation.config import EvaluateConfig
from rlhf.export.config import ExportRunConfig
from rlhf.planning.config import EstimateConfig
from rlhf.reporting.config import ReportPageConfig
from rlhf.selection.config import PassAtKConfig
from rlhf.serve.config import ServeConfig
from rollouts.config import ROLLOUT_CONFIGS, GenerateConfig
from sft.config import SFT_TRAINER_CONFIGS, SftConfig, SoupConfig
from sft.prepare.config import FreeResponseConfig, FusionConfig, LongCotConfig

ENTRIES: dict[str, type] = {
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "rlhf": RlConfig,
    "estimate": EstimateConfig,
    "evaluate": EvaluateConfig,
    "pass_at_k": PassAtKConfig,
    "generate": GenerateConfig,
    "pipeline": PipelineConfig,
    "report": ReportPageConfig,
    "convert": ConvertConfig,
    "describe": DescribeConfig,
    "assemble": AssembleConfig,
    "chat": ChatConfig,
    "export": ExportConfig,
    "export_run": ExportRunConfig,
    "serve": ServeConfig,
    "soup": SoupConfig,
    "prepare_longcot": LongCotConfig,
    "prepare_fusion": FusionConfig,
    "prepare_free_response": FreeResponseConfig,
    "probe": ProbeConfig,
    "expert_load": ExpertLoadConfig,
}

MODULES: dict[str, str] = {
    "pretrain": "model.pretrain.train",
    "sft": "sft.train",
    "rlhf": "rlhf.train",
    "estimate": "rlhf.estimate",
    "evaluate": "rlhf.evaluate",
    "pass_at_k": "rlhf.pass_at_k",
    "generate": "rollouts.generate",
    "pipeline": "rlhf.pipeline",
    "report": "rlhf.report",
    "convert": "model.data.convert",
    "describe": "model.describe",
    "assemble": "model.assemble",
    "chat": "model.chat",
    "export": "model.export",
    "export_run": "rlhf.export",
    "serve": "rlhf.serve",
    "soup": "sft.soup",
    "prepare_longcot": "sft.prepare longcot",
    "prepare_fusion": "sft.prepare fusion",
    "prepare_free_response": "sft.prepare free_response",
    "probe": "model.pretrain.probe",
    "expert_load": "model.pretrain.expert_load",
}

GROUPS: dict[str, dict[str, dict[str, type]]] = {
    "pretrain": {"adapter": {**ADAPTER_CONFIGS}, "engine": {**ENGINE_CONFIGS}},
    "sft": {
        "adapter": {**ADAPTER_CONFIGS},
        "engine": {**ENGINE_CONFIGS},
        "trainer": {**SFT_TRAINER_CONFIGS},
    },
    "rlhf": {
        "adapter": {**ADAPTER_CONFIGS},
        "algorithm": {**ALGORITHM_CONFIGS, "custom": CustomConfig},
        "trainer": {**TRAINER_CONFIGS},
        "rollouts": {**ROLLOUT_CONFIGS},
        "engine": {**ENGINE_CONFIGS},
    },
    "estimate": {
        "adapter": {**ADAPTER_CONFIGS},
        "algorithm": {**ALGORITHM_CONFIGS, "custom": CustomConfig},
        "trainer": {**TRAINER_CONFIGS},
        "rollouts": {**ROLLOUT_CONFIGS},
        "engine": {**ENGINE_CONFIGS},
    },
    "evaluate": {"rollouts": {**ROLLOUT_CONFIGS}},
    "pass_at_k": {"rollouts": {**ROLLOUT_CONFIGS}},
    "generate": {"rollouts": {**ROLLOUT_CONFIGS}},
}
"""Entry point -> config group -> choice -> its schema, whose defaults are the choice's values."""

SHORT_KEYS = {
    "evaluate": {"data": "data.folder"},
    "pipeline": {name: f"machine.{name}" for name in ("gpu", "gpus", "nodes")},
    "pass_at_k": {"general": "general.prompts", "general_share": "general.share"},
}
"""Entry point -> short key -> the key that it stands for. `data=FOLDER` cannot be mistaken for a group of choices."""

RECIPES_OF = {"estimate": "rlhf"}
"""Entry point -> the one whose recipes it takes."""

NAMED = (CustomConfig,)
"""The choices whose `name` is a setting; any other `GROUP.name` only says what the group chose."""


_known: dict[tuple[str, str], type] = {}
"""(group, choice), or ("", entry point) -> the schema that Hydra's store holds under these names now."""


def register(entry: str) -> None:
    """Make the schemas of an entry point known, in place of those that another one has under the same group and choice.
    Calling it again changes nothing. Those of all entry points would take half a second of every command."""
    store = ConfigStore.instance()
    if ("", entry) not in _known:
        store.store(name=f"{entry}_schema", node=ENTRIES[entry])
        _known["", entry] = ENTRIES[entry]
    for group, choices in GROUPS.get(entry, {}).items():
        for name, schema in choices.items():
            if _known.get((group, name)) is not schema:
                store.store(group=group, name=name, node=schema)
                _known[group, name] = schema
