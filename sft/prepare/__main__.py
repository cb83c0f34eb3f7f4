"""Makers of thinking data: `python -m sft.prepare longcot|fusion|free_response KEY=VALUE ...`."""

import sys

from conf.cli import USER_ERROR, launch
from sft.prepare.config import FreeResponseConfig, FusionConfig, LongCotConfig

_MAKERS = {
    "longcot": "cleans Chain-of-Thought demonstrations for LongCoT SFT",
    "fusion": "mixes an RL run's own correct rollouts with direct answers for think-fusion SFT",
    "free_response": "rewrites multiple choice with numbers or formulas as free response, for RL",
}


def _longcot(config: LongCotConfig, resolved: str) -> None:
    from sft.prepare.longcot import make

    make(config)


def _fusion(config: FusionConfig, resolved: str) -> None:
    from sft.prepare.fusion import make

    make(config)


def _free_response(config: FreeResponseConfig, resolved: str) -> None:
    from sft.prepare.free_response import make

    make(config)


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    match name:
        case "longcot":
            return launch("prepare_longcot", LongCotConfig, _longcot, num_words=1)
        case "fusion":
            return launch("prepare_fusion", FusionConfig, _fusion, num_words=1)
        case "free_response":
            return launch("prepare_free_response", FreeResponseConfig, _free_response, num_words=1)
        case "-h" | "--help":
            print("usage: python -m sft.prepare MAKER [KEY=VALUE ...] [-h | --help] [--cfg job] [--version]\n")
            print("\n".join(f"  {maker:14} {does}" for maker, does in _MAKERS.items()))
            print("\npython -m sft.prepare MAKER --help explains the keys of one.")
            return 0
        case _:
            print(f"error: expected one of {', '.join(_MAKERS)} as the first word, found {name!r:.80}", file=sys.stderr)
            return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
