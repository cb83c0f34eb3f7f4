"""No completion makes a scorer process evaluate code, start a process, open a file or a socket: an audit hook listens."""

import ast
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from rewards.result import Claim, RewardInput
from rewards.sandbox.pool import ScoringPool
from rewards.sandbox.tasks import CallOne, Load, Verify
from rewards.verifiers.registry import VERIFIERS

EVENTS = (
    "exec", "compile", "open", "import", "marshal.", "pickle.", "subprocess.", "socket.", "os.", "pty.", "ctypes.",
    "shutil.", "tempfile.", "urllib.", "http.", "ftplib.", "smtplib.", "code.__new__", "function.__new__", "fcntl.",
    "builtins.input", "builtins.breakpoint", "glob.", "mmap.", "sqlite3.", "webbrowser.", "cpython.run",
)  # fmt: skip
LISTENER = """
import os, sys

log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
heard = {events}

def listen(event, arguments):
    # A scorer process sets its CPU limit when a task begins.
    if event == "resource.setrlimit" and arguments[0] == 0:
        os.write(log, repr((os.getpid(), "task", "")).encode() + b"\\n")
    elif event.startswith(heard):
        os.write(log, repr((os.getpid(), event, repr(arguments)[:300])).encode() + b"\\n")

sys.addaudithook(listen)
"""

CONTROLS = {
    "evaluate": ("eval('1 + 1')", {"compile", "exec"}),
    "execute": ("exec('x = 1')", {"compile", "exec"}),
    "parse": ("__import__('sympy').parse_expr('1 + 1')", {"compile", "exec", "import"}),
    "system": ("__import__('os').system('true')", {"os.system"}),
    "spawn": ("__import__('subprocess').run(['true'])", {"subprocess.Popen"}),
    "fork": ("__import__('os').fork() or __import__('os')._exit(0)", {"os.fork"}),
    "read": ("open('/etc/hostname').read()", {"open"}),
    "connect": ("__import__('socket').socket().connect_ex(('127.0.0.1', 9))", {"socket.__new__", "socket.connect"}),
    "unpickle": ("__import__('pickle').loads(b'cos\\ngetpid\\n.')", {"pickle.find_class"}),
}

PYTHON = [
    "__import__('os').system('touch PWNED')",
    'eval(\'__import__("os").system("touch PWNED")\')',
    "exec(\"open('PWNED','w').write('1')\")",
    "open('PWNED','w')",
    "(lambda: __import__('subprocess').run(['touch','PWNED']))()",
    "().__class__.__base__.__subclasses__()",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__=='Popen'][0](['touch','PWNED'])",
    "Symbol('x').__class__.__init__.__globals__['sys'].modules['os'].system('touch PWNED')",
    'sympify(\'__import__("os").system("touch PWNED")\')',
    "parse_expr('1', global_dict={'__builtins__': __builtins__})",
    'lambdify([], \'__import__("os").system("touch PWNED")\')()',
    "1 if __import__('os').getpid() else 2",
    'f\'{open("PWNED", "w")}\'',
    "3; import os; os.system('touch PWNED')",
    "3\nimport os\nos.system('touch PWNED')",
    "breakpoint()",
    "__builtins__.__dict__['eval']('1')",
    "!!python/object/apply:os.system ['touch PWNED']",
    '{"__reduce__": ["os.system", ["touch PWNED"]]}',
    "{\"a\": \"__import__('os').system('touch PWNED')\"}",
    "cos\nsystem\n(S'touch PWNED'\ntR.",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "${__import__('os').system('touch PWNED')}",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x",
    "`touch PWNED`",
    "$(touch PWNED)",
]
LATEX = [
    "\\input{/etc/passwd}",
    "\\include{PWNED}",
    "\\write18{touch PWNED}",
    "\\immediate\\write18{touch PWNED}",
    "\\openout1=PWNED",
    "\\text{__import__('os').system('touch PWNED')}",
    "\\operatorname{__import__}('os')",
    "\\operatorname{eval}(1+1)",
    "\\mathrm{exec}(x)",
    "\\frac{__import__('os').getpid()}{1}",
    "x_{__import__('os')}",
    "\\sqrt[__import__('os')]{3}",
    "\\begin{pmatrix}__import__('os')&1\\\\2&3\\end{pmatrix}",
    "\\{eval('1'), exec('2')\\}",
    "\\int_0^1 open('PWNED') dx",
    "\\sum_{k=1}^{3} \\text{eval}(k)",
    "[[0, 0, __import__('os').getpid(), 500]]",
    "(500, eval('3'))",
    "1/2 + __import__('os').getpid()",
    "2**3**2 + abs(-1)",
    "3 ** -1",
    "1,234.5e3",
    "0x10",
    "\\lambda x: x",
    "\\lim_{x \\to 0} \\frac{\\sin x}{x} + \\int_0^1 x^2 dx",
    "\\tanh(\\zeta(3)) + \\Gamma(5)",
    "9" * 5000,
    "(" * 500 + "1" + ")" * 500,
]
REFERENCES = ["3", "\\frac{1}{2}x + \\sqrt{2}", "B", '["a", "b"]', "[0, 0, 500, 500]", '{"a": 1}', "x^2 = 4", "(1, 2]"]


def listened(log: Path) -> dict[int, set[str]]:
    """What each process was heard doing since its first task began."""
    heard: dict[int, set[str]] = defaultdict(set)
    working = set()
    for line in log.read_text().splitlines():
        pid, event, detail = ast.literal_eval(line)
        if event == "task":
            working.add(pid)
        elif pid in working:
            heard[pid].add(f"{event} {detail}")
    return heard


def all_tasks() -> Iterable[Verify]:
    for name, verifier in VERIFIERS.items():
        options = {key: 64 for key, option in verifier.options.items() if option.required}
        for number, text in enumerate(PYTHON + LATEX):
            wrapped = f"<think>{text}</think>\\boxed{{{text}}} <answer>{text}</answer> #### {text}\nAnswer: {text}"
            references = [REFERENCES[number % len(REFERENCES)], text if number % 2 else REFERENCES[-number % 7]]
            for reference in references:
                yield Verify(name, Claim(wrapped, text, reference, {"options": [text, "3"]}), options)


@pytest.fixture
def listening_pool(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(LISTENER.format(log=str(tmp_path / "log"), events=EVENTS))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with ScoringPool(1, 0.5, 512) as pool:
        yield pool


def test_no_completion_causes_anything_but_arithmetic(listening_pool, tmp_path):
    log = tmp_path / "log"
    source = "".join(f"def {name}(completion):\n    {code}\n    return 1.0\n" for name, (code, _) in CONTROLS.items())
    (tmp_path / "controls.py").write_text(source)
    item = RewardInput("", [], [], "", "", "", None, [], "stop", {})
    specs = {name: f"controls.py:{name}" for name in CONTROLS}
    listening_pool.run([Load(spec) for spec in specs.values()])
    for name, (_, expected) in CONTROLS.items():
        log.write_text("")
        (outcome,) = listening_pool.run([CallOne(specs[name], item, timeout_seconds=30)])
        assert outcome.value == 1.0, outcome
        heard = {line.split()[0] for lines in listened(log).values() for line in lines}
        assert expected <= heard, f"the listener is deaf to {name}: it heard {heard}"
    log.write_text("")

    tasks = list(all_tasks())
    outcomes = listening_pool.run(tasks)
    assert len(tasks) > 1500 and sum(outcome.value is not None for outcome in outcomes) > 1000
    starts = [line for line in log.read_text().splitlines() if "'task'" in line]
    assert len(starts) >= len(tasks), "the listener did not hear the tasks"
    assert {pid: lines for pid, lines in listened(log).items() if lines} == {}
    assert not list(tmp_path.rglob("PWNED*"))


CALLER = """
import json, sys

from rewards.answers import AnswerRule, extract, parse_completion
from rewards.result import Claim
from rewards.verifiers.registry import VERIFIERS, decide_quickly

heard, listening = [], False
sys.addaudithook(lambda event, found: heard.append((event, repr(found)[:200]))
                 if listening and event.startswith({events}) else None)

def decide(task):
    claim = Claim(**task["claim"])
    parse_completion(claim.completion)
    for rule in AnswerRule:
        extract(claim.completion, [rule])
    try:
        decide_quickly(task["verifier"], claim, task["options"])
    except ValueError:
        pass

tasks = json.load(sys.stdin)
for name in VERIFIERS:  # what is imported when it is first needed
    first = next(task for task in tasks if task["verifier"] == name)
    decide(dict(first, claim=dict(first["claim"], completion="7", answer="7", reference="7")))
listening = True
eval("1")
control = len(heard)
for task in tasks:
    decide(task)
listening = False
print(json.dumps([control, heard[control:], len(tasks)]))
"""


def test_nor_does_what_is_decided_in_the_callers_process():
    done = subprocess.run(
        [sys.executable, "-c", CALLER.format(events=EVENTS)],
        input=json.dumps([json.loads(task.encoded) for task in all_tasks()]),
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    control, heard, count = json.loads(done.stdout)
    assert control > 0 and count > 1500, "the listener is deaf"
    assert heard == []
