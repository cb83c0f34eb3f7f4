"""A pipeline's, a run's or a model's folder as one to publish: `python -m rlhf.export run=DIR out=DIR`.

OUT holds weights in safetensors shards, config, generation settings, processor and chat template, a model card with the
lineage (README.md), and the lineage as JSON. It appears whole and checked, or not at all.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from conf.cli import launch
from model.json_values import JsonObject
from model.run.durable import STAGING_SUFFIX, publish_folder, require_new_folder, write_file
from model.run.guidance import say_result
from model.run.manifest import Manifest
from rlhf.export.config import ExportRunConfig

if TYPE_CHECKING:
    from rlhf.export.card import Folder


def export_run(config: ExportRunConfig, resolved: str) -> None:
    """Write `config.out`. `ValueError` for a folder without a model, a damaged file, or an `out` that has files.

    `AnswersDiffer`, with nothing written, where a program answers otherwise from the folder than our own model.
    """
    from model.checkpoint import GENERATION, StoredTensors
    from rlhf.export.card import CARD, LINEAGE, card
    from rlhf.export.lineage import find_model, lineage_of

    out = Path(config.out)
    found = find_model(Path(config.run))
    require_new_folder(out, "out")
    stored_as = StoredTensors(found.model).dtype
    lineage = lineage_of(found, stored_as, map(Path, config.evaluations))
    draft = out.with_name(f"{out.name}.draft{STAGING_SUFFIX}")  # one that was killed left it
    shutil.rmtree(draft, ignore_errors=True)
    try:
        generation = _write_model(config, found.model, draft)
        checks = _checks(config, draft)
        written = Manifest.read(draft).entries
        folder = _facts(config, draft, generation, checks)
        write_file(draft / CARD, card(folder, lineage).encode())  # not in the manifest: it is there to be added to
        files = {GENERATION: generation, LINEAGE: lineage.to_json()}
        publish_folder(draft, out, written, {name: json.dumps(one, indent=2).encode() for name, one in files.items()})
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    print(f"{found.model} as {folder.dtype}; it was stored as {stored_as}")
    print("\n".join(checks))
    say_result(
        out, "model", f"python -m model.chat checkpoint={out} image=FILE", f"python -m rlhf.serve checkpoint={out}"
    )


def _write_model(config: ExportRunConfig, model: Path, draft: Path) -> JsonObject:
    """Write the weights and all that describes them; the content of generation_config.json."""
    from model.checkpoint import load_processor
    from model.config import ExportConfig
    from model.export import export

    export(ExportConfig(str(model), str(draft), config.dtype), says=False)
    generation = load_processor(draft).generation_settings
    if config.temperature:
        generation |= {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p}
    return generation


def _checks(config: ExportRunConfig, draft: Path) -> list[str]:
    """Compare answers; returns the sentences that say what was compared."""
    if not config.check:
        return ["nothing was compared: the folder was written with check=false"]
    from model.engine.device import pick_device, prepare_cpu
    from rlhf.export.answers import check_answers

    prepare_cpu(config.num_threads)
    done, absent = check_answers(draft, config.check_tokens, pick_device(config.device))
    how = f"both modes, eight questions each, at most {config.check_tokens} tokens, in float32"
    return [*(f"{one} ({how})" for one in done), *(f"{name}: not compared, for it is not installed" for name in absent)]


def _facts(config: ExportRunConfig, draft: Path, generation: JsonObject, checks: list[str]) -> "Folder":
    """Collect what the card says about the folder itself."""
    from model.config import REPORT_COMPLETION_TOKENS, SailVL2Config
    from model.describe import describe
    from rlhf.export.card import Folder

    shapes = SailVL2Config.from_folder(draft)
    published = shapes.to_published()
    towers = f"vision {published['vision_config']['model_type']}, decoder {published['llm_config']['model_type']}"
    context = shapes.language.max_position_embeddings
    return Folder(
        Path(config.out).resolve().name,
        describe(shapes),
        towers,
        context,
        str(shapes.stored_dtype()),
        generation,
        min(REPORT_COMPLETION_TOKENS, context),
        checks,
    )


def main() -> int:
    return launch("export_run", ExportRunConfig, export_run)


if __name__ == "__main__":
    sys.exit(main())
