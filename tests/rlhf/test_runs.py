"""The list of runs."""

import json

from rlhf.runs import main
from tests.rlhf.reporting.folders import write_lines, write_pipeline, write_run


def test_runs_and_stages_are_listed_with_state_figures_exit_code_and_size(tmp_path, capsys):
    write_pipeline(tmp_path / "deep" / "pipe")
    run = write_run(tmp_path / "rl\x1b[2J", steps=3)
    events = [{"time": 1, "event": "started"}, {"time": 2, "event": "ended", "exit_code": 3, "error": "unscorable"}]
    write_lines(run / "events.jsonl", events)
    (run / "checkpoints" / "step_00000003").mkdir(parents=True)
    (run / "checkpoints" / "step_00000003" / "weights").write_bytes(b"0" * 5 * 2**20)
    (tmp_path / "notes").mkdir()
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "deep/pipe", "deep/pipe/rl", "deep/pipe/sft", "rl\\x1b[2J"]
    assert lines[-1].split()[1:4] == ["failed", "3", "3"]
    assert "5.0 MiB" in lines[-1] and "accuracy" in lines[-1] and "nll_per_token 0.2" in lines[3]
    assert main([str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["exit_code"], found["step"]) == ("failed", 3, 3)


def test_folders_without_runs_are_said(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0 and "no run in" in capsys.readouterr().out
    assert main([str(tmp_path / "x")]) == 2 and "found none" in capsys.readouterr().err
