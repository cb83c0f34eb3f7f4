"""Turn a public data set into prompts: `python -m model.data.convert NAME source=FOLDER out=DIR`.

FOLDER is where the data set was downloaded to; nothing is downloaded here. DIR gets one JSONL file for each split, the
images, and `summary.json`, which says how many rows were kept and why others were not.
"""

import sys

from conf.cli import launch
from model.data.convert.config import ConvertConfig


def run(config: ConvertConfig, resolved: str) -> None:
    """Convert, and print what was kept and the overrides of a run that uses it. `ValueError` for another layout."""
    from model.data.convert.write import convert

    print("\n".join(convert(config)))


def main() -> int:
    return launch("convert", ConvertConfig, run, first="dataset")


if __name__ == "__main__":
    sys.exit(main())
