"""The averages of the report over benchmarks."""

import pytest

from rlhf.config import EvaluationMode
from rlhf.evaluation.suite import averages_of


def test_averages_are_those_of_the_report_and_name_what_is_missing():
    """The figures of SAIL-VL2-2B in table 8 of the report give the averages that it prints beside them."""
    table = {
        **{"logicvista": 36.24, "mathvision": 23.36, "mathverse": 31.19, "mathvista": 71.10, "olympiadbench": 7.54},
        **{"wemath": 22.67, "dynamath": 10.18, "mmbench_v11": 86.77, "mmstar": 64.07, "ai2d": 83.00, "ocrbench": 89.50},
        **{"mmvet": 68.67, "hallusionbench": 51.74, "mmmu": 47.67, "mme": 76.58, "realworldqa": 72.29, "docvqa": 93.10},
        **{"crpe_relation": 75.20, "mm_ifeval": 52.21, "refcoco": 53.28},
        **{"video_mme": 57.10, "longvideobench": 54.45, "tempcompass": 61.86, "mmiu": 42.61},
    }
    results = {name: {"modes": {"direct": {"figure": figure}}} for name, figure in table.items()}
    found = averages_of(results, [EvaluationMode.direct])
    printed = {"OpenCompass": 70.31, "General overall": 70.31, "Math overall": 28.90, "Multi-image and video": 54.01}
    assert {name: round(found[name]["direct"], 2) for name in printed} == printed
    assert found["OpenSource"]["direct"] == pytest.approx(51.07, abs=0.006)
    del results["wemath"]
    partial = averages_of(results, [EvaluationMode.direct])
    assert partial["Math overall"] == {"missing": ["wemath"]} and partial["OpenSource"] == {"missing": ["Math overall"]}
    results["mmstar"]["modes"]["direct"]["figure"] = None
    assert averages_of(results, [EvaluationMode.direct])["OpenCompass"] == {"direct": None}
