"""A run is what it was: settings, inputs and code are compared when it goes on."""

import pytest

from model.run.config import RunConfig
from model.run.folder import RunFolder
from model.run.identity import Input
from tests.model.run.counter import Counter


class TestIdentity:
    def begun(self, folder, inputs, accept=(), config="a: 1\nb: {c: 2, d: [3]}\n") -> RunFolder:
        run = RunFolder(RunConfig(dir=str(folder), accept_changes=list(accept)), config)
        run.declare(inputs)
        return run

    def start(self, folder, inputs) -> None:
        with self.begun(folder, inputs) as run:
            run.restore(Counter())
            run.log(1, {"loss": 1.0})
            run.save(Counter(), {"step": 1})

    def test_every_key_that_differs_is_named_with_both_values(self, tmp_path):
        self.start(tmp_path, {})
        with pytest.raises(ValueError) as error:
            self.begun(tmp_path, {}, config="a: 1\nb: {c: 5, e: x}\n")
        for text in (
            "b.c: 2 in the folder, 5 now",
            "b.d: [3] in the folder, absent now",
            "b.e: absent in the folder, 'x' now",
        ):
            assert text in str(error.value)

    def test_inputs_that_changed_are_refused_by_name_and_path(self, tmp_path):
        self.start(tmp_path / "run", {"prompts": Input("old/p.jsonl", "1"), "checkpoint": Input("c", "2")})
        with pytest.raises(
            ValueError, match=r"prompts: new/p\.jsonl does not hold what .*\(old/p\.jsonl\).*accept_changes=\[prompts\]"
        ):
            self.begun(tmp_path / "run", {"prompts": Input("new/p.jsonl", "3"), "checkpoint": Input("elsewhere", "2")})

    def test_an_explicit_word_goes_on_and_is_kept(self, tmp_path, capfd):
        self.start(tmp_path / "run", {"prompts": Input("p", "1")})
        with self.begun(tmp_path / "run", {"prompts": Input("p", "3")}, accept=["prompts"]) as run:
            assert "accepted by run.accept_changes" in capfd.readouterr().err
            run.restore(Counter())
            run.save(Counter(), {"step": 2})
        self.begun(tmp_path / "run", {"prompts": Input("p", "3")}).__exit__()
        with pytest.raises(ValueError, match="prompts: p does not hold"):
            self.begun(tmp_path / "run", {"prompts": Input("p", "1")})

    def test_a_word_that_names_no_input_is_refused(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"run\.accept_changes: expected names among code, prompts, or keys, found 'prompt'"
        ):
            self.begun(tmp_path / "run", {"prompts": Input("p", "1")}, accept=["prompt"])

    def test_another_version_of_the_code_is_named(self, tmp_path, monkeypatch):
        self.start(tmp_path / "run", {})
        monkeypatch.setattr("model.run.folder.code_input", lambda: Input("sailvl2-rl 9", "x"))
        with pytest.raises(ValueError, match=r"code: sailvl2-rl 9 does not hold what the run began with"):
            self.begun(tmp_path / "run", {})

    def test_the_place_is_no_part_of_a_run(self, tmp_path):
        self.start(tmp_path / "run", {})
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "link").symlink_to(tmp_path / "moved")
        for folder in ("moved", "link"):
            with self.begun(tmp_path / folder, {}) as run:
                assert run.restore(Counter())["step"] == 1

    def test_an_input_that_is_gone_is_named(self, tmp_path):
        both = {"prompts": Input("p", "1"), "data.also": Input("q", "2")}
        self.start(tmp_path / "run", both)
        with pytest.raises(ValueError, match=r"data\.also: the run began with q, found none now"):
            self.begun(tmp_path / "run", {"prompts": Input("p", "1")})
        self.begun(tmp_path / "run", {"prompts": Input("p", "1")}, accept=["data.also"]).__exit__()

    def test_what_was_accepted_stays_accepted_before_the_first_checkpoint_too(self, tmp_path):
        with self.begun(tmp_path, {"prompts": Input("p", "1")}) as run:
            run.restore(Counter())
            run.log(1, {"loss": 1.0})
        self.begun(tmp_path, {"prompts": Input("p", "2")}, accept=["prompts"]).__exit__()
        self.begun(tmp_path, {"prompts": Input("p", "2")}).__exit__()

    def test_a_setting_can_be_accepted_by_name(self, tmp_path):
        self.start(tmp_path / "run", {})
        self.begun(tmp_path / "run", {}, accept=["b.e"], config="a: 1\nb: {c: 2, d: [3], e: 0}\n").__exit__()

    def test_a_complete_run_refuses_other_inputs_too(self, tmp_path, capsys):
        self.start(tmp_path, {"prompts": Input("p", "1"), "prompts.media": Input("m", "1")})
        (tmp_path / "done.json").write_text("{}")
        (tmp_path / "final").mkdir()
        with RunFolder(RunConfig(dir=str(tmp_path)), "a: 1\nb: {c: 2, d: [3]}\n") as run:
            with pytest.raises(ValueError, match="prompts: p does not hold"):
                run.already_complete(lambda: {"prompts": Input("p", "2")})
            assert run.already_complete(lambda: {"prompts": Input("p", "1")})
            assert run.already_complete(dict) and "already complete" in capsys.readouterr().out


def test_functions_are_known_by_name_and_source_not_by_place(tmp_path):
    from conf.cli import load_config
    from rlhf.planning.inputs import inputs_of

    (tmp_path / "model").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.py").write_text("def f(c):\n    return 1\ndef g(c):\n    return 1\n")

    def found(*functions: str) -> dict[str, Input]:
        override = f"reward.functions=[{','.join(functions)}]"
        config = load_config("rlhf", [f"checkpoint={tmp_path / 'model'}", "prompts=p", override])[0]
        return inputs_of(config)

    one = found(f"{tmp_path}/a/r.py:f")["reward.functions"].sha256
    assert found(f"{tmp_path}/b/r.py:f")["reward.functions"].sha256 == one
    assert found(f"{tmp_path}/a/r.py:g")["reward.functions"].sha256 != one
    assert "reward.functions" not in found()


def test_a_run_whose_final_model_is_gone_is_not_complete(tmp_path):
    with RunFolder(RunConfig(dir=str(tmp_path)), "a: 1\n") as run:
        run.restore(Counter())
        run.finish({})
        assert not run.is_done
        (tmp_path / "final").mkdir()
        assert run.is_done
