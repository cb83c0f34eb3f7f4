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
            ValueError, match=r"run\.accept_changes: expected names among code, prompts, found 'prompt'"
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
