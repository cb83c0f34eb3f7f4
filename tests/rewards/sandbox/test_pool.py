"""Scorer processes: order, deadlines, memory, deaths, and a protocol that user code cannot break."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rewards.result import Claim, Status
from rewards.sandbox.pool import REASON_KINDS, ScoringPool
from rewards.sandbox.tasks import MAX_REPLY_BYTES, CallOne, Load, Verify

ROOT = Path(__file__).resolve().parents[3]
DEADLINE, MEMORY_MB = 0.5, 128
PATIENT = {"timeout_seconds": 20.0}  # filling memory takes its time on a busy machine
# A killed task takes its deadline and a replacement; a missed deadline would take the start limit of 60 s.
SOON = 15.0


@pytest.fixture(scope="module")
def pool():
    with ScoringPool(1, DEADLINE, MEMORY_MB) as pool:
        pool.run([Verify("math", Claim("", "1"))])
        yield pool


def is_running(pid: float) -> bool:
    try:
        state = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and waits for a parent that takes its time


def wait_for(condition, seconds: float = SOON) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def values(outcomes) -> list:
    return [outcome.value for outcome in outcomes]


class TestOrder:
    def test_functions_see_the_input_as_plain_data(self, pool, call):
        (outcome,) = pool.run([call("from_meta", meta={"points": 4}, images=["a.png", "b.png"])])
        assert (outcome.value, outcome.status, outcome.reason) == (6.0, Status.ok, "")

    def test_two_workers_keep_the_order_and_share_the_work(self, call):
        with ScoringPool(2, DEADLINE) as pool:
            outcomes = pool.run([call("hang_when_told", text) for text in ("hang", "1", "2", "3", "4")])
            assert values(outcomes) == [None, 1.0, 2.0, 3.0, 4.0]
            running = set(values(pool.run([call("process_id")] * 40)))
            assert len(running) == 2
        assert not any(is_running(pid) for pid in running)

    def test_both_kinds_of_tasks_in_one_run(self, pool, call, verify):
        tasks = [call("parse", "1"), verify("\\sqrt{9}"), call("parse", "2"), verify("\\sqrt{16}")]
        assert values(pool.run(tasks)) == [1.0, 1.0, 2.0, 0.0]

    def test_no_tasks_no_outcomes(self, pool):
        assert pool.run([]) == []

    def test_a_pool_works_again_after_it_was_closed(self, call):
        pool = ScoringPool(1, DEADLINE)
        assert values(pool.run([call("constant")])) == [0.25]
        pool.close()
        pool.close()
        assert values(pool.run([call("constant")])) == [0.25]
        pool.close()

    @pytest.mark.parametrize("settings", [(0, 1.0), (1, 0.0), (1, float("nan")), (1, float("inf")), (1, 1.0, 0)])
    def test_settings_without_sense_are_refused(self, settings):
        with pytest.raises(ValueError, match="expected at least one worker, a positive deadline"):
            ScoringPool(*settings)


class TestDeadline:
    def test_hanging_call_is_killed_at_its_deadline_even_as_the_first_of_a_process(self, call):
        begin = time.monotonic()
        with ScoringPool(1, DEADLINE) as pool:
            outcomes = pool.run([call("hang"), call("hang"), call("parse", "5")])
        assert values(outcomes) == [None, None, 5.0]
        assert outcomes[0].reason == outcomes[1].reason == "timeout after 0.5 s"
        assert outcomes[0].status is Status.unscorable and outcomes[0].seconds >= DEADLINE
        assert 2 * DEADLINE <= time.monotonic() - begin < SOON

    def test_killed_process_is_gone_and_replaced(self, pool, call):
        before, hung, after = pool.run([call("process_id"), call("hang"), call("process_id")])
        assert hung.value is None
        assert not is_running(before.value) and is_running(after.value)

    @pytest.mark.parametrize("name", ["burn", "hold_the_interpreter", "ignore_signals"])
    def test_nothing_holds_it_up(self, pool, call, name):
        stuck, fine = pool.run([call(name), call("parse", "2")])
        assert (stuck.reason, fine.value) == ("timeout after 0.5 s", 2.0)

    def test_a_task_may_have_its_own(self, pool, call):
        slow, fast = pool.run([replace(call("hang"), timeout_seconds=0.7), replace(call("hang"), timeout_seconds=0.1)])
        assert (slow.reason, fast.reason) == ("timeout after 0.7 s", "timeout after 0.1 s")

    @pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "soon"])
    def test_one_without_sense_is_refused_and_harms_no_other(self, pool, call, seconds):
        odd, fine = pool.run([replace(call("constant"), timeout_seconds=seconds), call("parse", "2")])
        assert odd.reason == f"error: timeout_seconds: expected a positive number, found {seconds!r}"
        assert fine.value == 2.0

    def test_one_longer_than_a_timer_holds(self, pool, call):
        assert values(pool.run([replace(call("constant"), timeout_seconds=1e12)])) == [0.25]

    def test_imports_of_a_users_file_are_not_the_calls_time(self, tmp_path, call):
        path = tmp_path / "slow.py"
        path.write_text("import time\ntime.sleep(0.6)\ndef one(completion):\n    return 1.0\n")
        with ScoringPool(1, timeout_seconds=0.3) as pool:
            outcomes = pool.run([replace(call("constant"), function=f"{path}:one")] * 2)
        assert values(outcomes) == [1.0, 1.0]

    def test_hung_tasks_do_not_starve_the_rest(self, call):
        with ScoringPool(2, 0.2) as pool:
            outcomes = pool.run([call("hang")] * 4 + [call("parse", str(n)) for n in range(100)])
        assert values(outcomes) == [None] * 4 + [float(n) for n in range(100)]

    def test_children_die_with_their_worker_even_in_sessions_of_their_own(self, pool, call, tmp_path):
        (outcome,) = pool.run([replace(call("leave_children", str(tmp_path / "pids")), timeout_seconds=1.0)])
        assert outcome.reason.startswith("timeout")
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert len(pids) == 2 and wait_for(lambda: not any(is_running(pid) for pid in pids))

    def test_a_hostile_answer_is_killed_and_a_bad_reference_named(self, pool, verify):
        endless = verify("\\prod_{k=1}^{10^{12}}(k^{50}+1)")
        slow, bad, fine = pool.run([endless, verify("3", "\\frac{1}{"), verify("\\frac{6}{2}")])
        assert slow.value is None and slow.reason.startswith("timeout")
        assert bad.value is None and bad.reason.startswith("refused: ") and "does not parse" in bad.reason
        assert fine.value == 1.0


class TestMemory:
    def test_it_is_limited_for_each_task_and_a_fresh_process_follows(self, pool, call):
        tasks = [replace(call("use_memory", size), **PATIENT) for size in ("64", "512")]
        before, fine, bomb, after = pool.run([call("process_id"), *tasks, call("process_id")])
        assert fine.value == 64.0
        assert (bomb.value, bomb.reason) == (None, f"memory: ran into the limit of {MEMORY_MB} MB")
        assert not is_running(before.value) and is_running(after.value)

    @pytest.mark.parametrize("name", ["swallow_memory_errors", "many_small_objects"])
    def test_a_swallowed_failure_is_not_a_verdict(self, pool, call, name):
        bomb, fine = pool.run([replace(call(name, "512"), timeout_seconds=5.0), call("swallow_memory_errors", "8")])
        assert (bomb.value, bomb.reason) == (None, f"memory: ran into the limit of {MEMORY_MB} MB")
        assert fine.value == 8.0

    def test_a_call_may_have_its_own(self, pool, call):
        tasks = [replace(call("use_memory", "256"), memory_mb=megabytes, **PATIENT) for megabytes in (512, 64, 0)]
        more, less, free = pool.run([*tasks, call("use_memory", "64")])[:3]
        assert (more.value, less.reason, free.value) == (256.0, "memory: ran into the limit of 64 MB", 256.0)

    def test_a_verifier_that_runs_out_is_unscorable(self, verify):
        with ScoringPool(1, 5.0, memory_mb=32) as pool:
            bomb, fine = pool.run([verify("\\gcd(7^{9000000000},3)"), verify("\\sqrt{9}")])
        assert (bomb.value, bomb.reason, fine.value) == (None, "memory: ran into the limit of 32 MB", 1.0)

    def test_a_process_that_keeps_memory_is_replaced(self, tmp_path, call):
        path = tmp_path / "keeper.py"
        path.write_text(
            "import os\nkept = []\ndef keep(c):\n    kept.append(bytearray(40 << 20))\n    return os.getpid()\n"
        )
        with ScoringPool(1, 5.0, MEMORY_MB) as pool:
            pids = values(pool.run([replace(call("constant"), function=f"{path}:keep")] * 6))
        assert None not in pids and 2 <= len(set(pids)) <= 5


class TestDeath:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("leave", "died with exit code 3"),
            ("crash", "died by SIGSEGV"),
            ("abort", "died by SIGABRT"),
            ("say_garbage", "died: sent what is no reply"),
            ("answer_twice", "died: answered more than once"),
            ("flood", f"died: a reply has at most {MAX_REPLY_BYTES} bytes"),
            ("hang_up", "died: closed its connection"),
            ("fork_and_leave", "died with exit code 0"),
            ("quit", "error: SystemExit('bye')"),
            ("interrupt", "error: KeyboardInterrupt()"),
        ],
    )
    def test_it_costs_one_outcome_and_one_process(self, pool, call, name, reason, capfd):
        tasks = [call("process_id"), call("parse", "1"), call(name), call("parse", "2"), call("process_id")]
        before, one, dead, two, after = pool.run(tasks)
        assert (one.value, two.value) == (1.0, 2.0)
        assert dead.value is None and dead.status is Status.unscorable and dead.reason.startswith(reason)
        assert not is_running(before.value) and is_running(after.value)

    def test_a_late_second_answer_costs_the_process_and_no_other_task(self, pool, call):
        before, _, one, two, after = pool.run(
            [call("process_id"), call("answer_early"), call("parse", "1"), call("parse", "2"), call("process_id")]
        )
        assert (one.value, two.value) == (1.0, 2.0)
        assert not is_running(before.value) and is_running(after.value)

    def test_all_reasons_begin_with_a_known_kind(self, pool, call, verify):
        names = ["hang", "leave", "fail", "say_garbage", "absent", "swallow_memory_errors"]
        outcomes = pool.run(
            [call(name, "900") for name in names] + [verify("3", "\\frac{1}{"), verify("3", verifier="odd")]
        )
        assert all(outcome.value is None for outcome in outcomes)
        kinds = [next(kind for kind in REASON_KINDS if outcome.reason.startswith(kind)) for outcome in outcomes]
        assert kinds == ["timeout", "died", "error", "died", "load", "memory", "refused", "error"]

    def test_exceptions_are_outcomes_with_a_traceback_and_cost_no_process(self, pool, call):
        before, failed, odd, after = pool.run([call(n) for n in ("process_id", "fail", "unspeakable", "process_id")])
        assert failed.reason == "error: LookupError('no such thing')"
        assert 'raise LookupError("no such thing")' in failed.traceback and "functions.py" in failed.traceback
        assert odd.reason == "error: Unspeakable, whose text raises RuntimeError"
        assert before.value == after.value

    def test_a_forked_copy_of_a_worker_does_not_answer(self, pool, call):
        outcomes = pool.run([call("fork_and_return", str(n)) for n in range(8)] + [call("parse", "9")])
        assert values(outcomes) == [float(n) for n in range(8)] + [9.0]

    def test_a_file_that_dies_or_hangs_while_it_is_loaded_is_a_load_failure(self, pool, call, tmp_path, monkeypatch):
        reasons = []
        for source in ("import os\nos._exit(5)", "raise SystemExit('no')", "import absent_module", "def f(:"):
            path = tmp_path / f"own{len(reasons)}.py"
            path.write_text(source)
            reasons.append(pool.run([replace(call("constant"), function=f"{path}:f")])[0].reason)
        assert reasons[0] == "load: the process died with exit code 5" and "SystemExit('no')" in reasons[1]
        assert "absent_module" in reasons[2] and all(reason.startswith("load: ") for reason in reasons)
        (tmp_path / "endless.py").write_text("while True: pass")
        monkeypatch.setattr("rewards.sandbox.dispatcher.LOAD_SECONDS", 0.3)
        (outcome,) = pool.run([Load(f"{tmp_path / 'endless.py'}:f")])
        assert outcome.reason == "load: importing the file took more than 0.3 s"

    def test_a_dead_zygote_is_replaced_and_its_tasks_done_again(self, call, verify):
        with ScoringPool(2, 5.0) as pool:
            own, *_ = pool.run([call("process_id")])
            zygote = int(Path(f"/proc/{int(own.value)}/stat").read_text().rpartition(")")[2].split()[1])
            outcomes: list = []
            thread = threading.Thread(
                target=lambda: outcomes.extend(
                    pool.run([replace(call("hang"), timeout_seconds=1.0), call("parse", "1")])
                )
            )
            thread.start()
            time.sleep(0.3)
            os.kill(zygote, signal.SIGKILL)
            thread.join()
            assert outcomes[0].reason == "timeout after 1 s" and outcomes[1].value == 1.0
            assert wait_for(lambda: not is_running(own.value))
            (killer,) = pool.run([call("kill_parent")])  # tried twice: a sibling task could be hit both times
            (fine,) = pool.run([call("parse", "2")])
            assert killer.reason.startswith("died: ") and fine.value == 2.0

    def test_everything_ends_when_the_parent_is_killed(self, functions):
        source = f"""
            import os, sys, time
            from rewards.sandbox.pool import ScoringPool
            from rewards.result import RewardInput
            from rewards.sandbox.tasks import CallOne
            item = RewardInput("", [], [], "", "", "", None, [], "stop", {{}})
            task = lambda name: CallOne({str(functions)!r} + ":" + name, item)
            pool = ScoringPool(2, 600.0)
            print(int(pool.run([task("process_id")])[0].value), flush=True)
            pool.run([task("hang")] * 2)
        """
        parent = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(source)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        zygote = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        children = Path(f"/proc/{zygote}/task/{zygote}/children")
        assert wait_for(lambda: len(children.read_text().split()) == 2)
        pids = [zygote, *(int(pid) for pid in children.read_text().split())]
        parent.kill()
        parent.wait()
        assert wait_for(lambda: not any(is_running(pid) for pid in pids))

    def test_descriptors_threads_and_processes_are_given_back(self, call):
        def held():
            return len(os.listdir("/proc/self/fd")), threading.active_count()

        before = held()
        for _ in range(3):
            with ScoringPool(2, 0.2) as pool:
                first = int(pool.run([call("process_id")])[0].value)
                zygote = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
                open_then = len(os.listdir(f"/proc/{zygote}/fd"))
                pool.run([call(name) for name in ("hang", "leave", "hang_up", "quit") * 3])
                pool.run([call("parse", "1")] * 4)
                assert len(os.listdir(f"/proc/{zygote}/fd")) == open_then
        assert held() == before and not is_running(zygote)

    def test_what_a_living_worker_leaves_behind_is_reaped(self, call, tmp_path):
        path = tmp_path / "daemons.py"
        path.write_text(
            "import os\ndef leave(completion):\n    if os.fork() == 0:\n        os.fork()\n        os._exit(0)\n"
            "    os.wait()\n    return float(os.getppid())\n"
        )
        with ScoringPool(1, 5.0) as pool:
            outcomes = pool.run([replace(call("constant"), function=f"{path}:leave")] * 20)
            zygote = int(outcomes[0].value)
            children = Path(f"/proc/{zygote}/task/{zygote}/children")
            assert wait_for(lambda: len(children.read_text().split()) == 1)

    def test_a_pool_that_gets_no_thread_says_so_every_time(self, call, monkeypatch):
        def refuse(_):
            raise RuntimeError("can't start new thread")

        pool = ScoringPool(1, DEADLINE)
        with monkeypatch.context() as patch:
            patch.setattr("rewards.sandbox.dispatcher.Dispatcher.start", refuse)
            for _ in range(2):  # the second time no thread may be waited for that never began
                with pytest.raises(RuntimeError, match="new thread"):
                    pool.run([call("constant")])
        assert values(pool.run([call("constant")])) == [0.25]
        pool.close()

    def test_a_pool_that_nobody_holds_ends_its_processes(self, call):
        pool = ScoringPool(1, DEADLINE)
        (own,) = pool.run([call("process_id")])
        del pool
        assert wait_for(lambda: not is_running(own.value))


class TestValues:
    @pytest.mark.parametrize("name", ["nan", "inf", "str", "none", "list", "complex", "tensor", "array", "huge"])
    def test_what_is_not_a_finite_number_is_refused(self, pool, call, name):
        (outcome,) = pool.run([call("bad", name)])
        assert outcome.value is None
        assert "expected a finite number" in outcome.reason
        assert name == "huge" or "functions.py:bad" in outcome.reason

    def test_every_kind_of_real_number_is_taken(self, pool, call):
        outcomes = pool.run([call("good", name) for name in ("int", "float", "fraction", "float32", "int64")])
        assert values(outcomes) == [2.0, 0.5, 0.25, 0.5, -3.0]

    @pytest.mark.parametrize("name", ["bool", "numpy_bool"])
    def test_true_is_1(self, pool, call, name):
        assert values(pool.run([call("bad", name)])) == [1.0]

    def test_printing_user_code_does_not_corrupt_the_protocol(self, call, capfd):
        with ScoringPool(1, DEADLINE) as pool:  # of its own: a worker writes to the stderr that there was at its start
            outcomes = pool.run([call("chatter"), call("parse", "1"), call("chatter")])
        assert values(outcomes) == [0.5, 1.0, 0.5]
        printed = capfd.readouterr()
        assert printed.out == ""
        assert '[chatter] {"value": 99.0}\n' in printed.err and "[chatter] no newlinexxx" in printed.err
        assert "x" * 501 not in printed.err

    @pytest.mark.parametrize(
        "text",
        ["a\nb\r\n\0", "\u2028\u0085", "思考", "\ud800", "x" * 3_000_000],
        ids=["controls", "separators", "wide", "surrogate", "long"],
    )
    def test_any_text_travels(self, pool, call, text):
        (outcome,) = pool.run([call("length", text)])
        assert outcome.value == len(text)

    def test_tasks_that_are_no_plain_data_are_outcomes(self, pool, call):
        odd = replace(call("constant"), options={"more": object()})
        loop: list = []
        loop.append(loop)
        outcomes = pool.run([odd, Verify("math", Claim("", "1", loop))])
        assert all(outcome.reason.startswith("error: the task is not plain JSON data") for outcome in outcomes)


class TestCallers:
    """A deadline by signal would work in the main thread only."""

    def check(self, outcomes) -> None:
        assert values(outcomes) == [1.0, None, 3.0, 0.0]
        assert outcomes[1].reason == "timeout after 0.5 s"

    @pytest.fixture
    def tasks(self, call, verify):
        return [verify("\\sqrt{8}", "2\\sqrt{2}"), call("hang"), call("parse", "3"), verify("\\sqrt{7}", "2\\sqrt{2}")]

    def test_main_thread(self, pool, tasks):
        self.check(pool.run(tasks))

    def test_many_threads_at_once(self, pool, tasks):
        found: dict[int, list] = {}
        threads = [
            threading.Thread(target=lambda n=n: found.__setitem__(n, pool.run(tasks if n == 0 else tasks[2:])))
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.check(found[0])
        assert all(values(found[n]) == [3.0, 0.0] for n in range(1, 6))

    def test_a_short_run_does_not_wait_for_a_long_one(self, pool, call):
        long = pool.submit([replace(call("hang"), timeout_seconds=0.1)] * 30)
        assert values(pool.run([call("parse", "1")])) == [1.0]
        assert not long.done()
        long.cancel()

    def test_asyncio(self, pool, tasks):
        async def main():
            ticks = 0

            async def tick():
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0.01)

            ticking = asyncio.create_task(tick())
            outcomes, by_thread = await asyncio.gather(pool.run_async(tasks), asyncio.to_thread(pool.run, tasks))
            ticking.cancel()
            return outcomes, by_thread, ticks

        outcomes, by_thread, ticks = asyncio.run(main())
        self.check(outcomes)
        self.check(by_thread)
        assert ticks > 10, "the event loop stood still"

    def test_an_actor_whose_code_runs_outside_the_main_thread(self, tasks):
        """As in a Ray actor: another process, no main module of its own to import again."""
        source = f"""
            import json, threading
            from rewards.result import Claim, RewardInput
            from rewards.sandbox.pool import ScoringPool
            from rewards.sandbox.tasks import CallOne, Verify
            def act():
                with ScoringPool(1, {DEADLINE}) as pool:
                    print(json.dumps([[o.value, o.reason] for o in pool.run({tasks!r})]))
            thread = threading.Thread(target=act)
            thread.start()
            thread.join()
        """
        done = subprocess.run(
            [sys.executable], input=textwrap.dedent(source), capture_output=True, text=True, cwd=ROOT, timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == '[[1.0, ""], [null, "timeout after 0.5 s"], [3.0, ""], [0.0, ""]]'

    def test_a_forked_copy_of_the_caller_gets_processes_of_its_own(self, pool, call):
        pool.run([call("constant")])
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                os.write(write, repr(values(pool.run([call("parse", "4")]))).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as file:
            assert file.read() == "[4.0]"
        os.waitpid(pid, 0)
        assert values(pool.run([call("parse", "5")])) == [5.0]

    def test_own_module_in_the_working_directory_does_not_shadow_ours(self, tmp_path, monkeypatch, make_input):
        (tmp_path / "rewards.py").write_text("def mine(completion):\n    return 0.75\n")
        (tmp_path / "json.py").write_text("raise RuntimeError('shadowed')\n")
        monkeypatch.chdir(tmp_path)
        task = CallOne("rewards.py:mine", make_input("x"))
        with ScoringPool(1, DEADLINE) as pool:
            assert values(pool.run([task])) == [0.75]


def test_user_code_that_patches_a_verifier_changes_no_verdict(pool, call, verify):
    wrong = [verify("\\sqrt{7}"), verify("8", "9"), verify("\\frac{1}{2}", "x")]
    before = values(pool.run(wrong))
    outcomes = pool.run([call("patch_verifiers"), *wrong, call("patch_verifiers"), *wrong])
    assert before == [0.0] * 3 and values(outcomes) == [1.0, *before, 1.0, *before]
