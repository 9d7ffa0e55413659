"""A machine that is lost in the middle of a check: what ran is judged here. QEMU is played."""

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.ideal import ideal_history
from tests.unit.cli.test_lab import kernel
from vmm.catalogue import catalogue
from vmm.cli.main import main
from vmm.lab import machine
from vmm.lab.machine import QEMU
from vmm.scenario.codec import history_lines
from vmm.scenario.features import Features

PLAYED = """\
import os, re, sys, time
words = sys.argv[1:]
log = open(next(w for w in words if w.startswith("file,id=log")).rpartition("path=")[2], "w")
first = open(words[words.index("-initrd") + 1], "rb").read()
nonce = re.search(rb"nonce\\0(\\w+)\\0", first)[1].decode()
def report(text):
    log.write(f"[    1.0] memslot-lab {nonce} {text}\\n")
    log.flush()

def say(text):
    log.write(f"[    2.0] {text}\\n")
    log.flush()

def over(status):
    report(f"status {status}")
    report("over")
    sys.exit()

report("waiting")
orders = b""
while not orders.endswith(b"end\\0\\0"):
    orders += os.read(0, 65536)
asked = [w.decode() for w in re.findall(rb"word\\0([^\\0]*)\\0", orders)]
"""
"""The beginning of a program that stands for QEMU: it reads what init is to do, and reports."""

NAMES = ("move-up", "move-down", "move-between-two")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path('/usr/bin')}:/bin")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def lab(tmp_path: Path, program: str, *words: str) -> Result:
    """Run a check on a machine that is played by a program."""
    file = tmp_path / QEMU
    file.write_text(f"#!{sys.executable}\n{PLAYED}{textwrap.dedent(program)}")
    file.chmod(0o755)
    image = kernel(tmp_path)
    options = ("--kernel", image, "--backend", "svm", "--timeout", "20", "--fresh")
    return CliRunner().invoke(main, ["lab", "run", *options, "--", "check", *words])


def recorded(tmp_path: Path) -> Path:
    """Return a file with the histories of two scenarios on a right kernel."""
    features = Features()
    chosen = [each for each in catalogue(features) if each.name in NAMES[:2]]
    file = tmp_path / "recorded.jsonl"
    file.write_bytes(b"".join(b"".join(history_lines(ideal_history(each))) for each in chosen))
    return file


LOST = """
report("booted")
report("ready")
report("scenarios 3")
for name in ("move-up", "move-down"):
    report(f"begin {name}")
open(asked[asked.index("--histories") + 1], "wb").write(open("RECORDED", "rb").read())
report("begin move-between-two")
say("last words")
"""


@pytest.mark.parametrize(
    ("end", "status", "why"),
    [
        ("sys.exit()", 3, "the machine stopped in move-between-two without the command's status"),
        ("say('Kernel panic - not syncing: x'); sys.exit()", 1, "the kernel complained: Kernel pa"),
        ("time.sleep(600)", 3, "the machine hangs in move-between-two: no sign of life for 1 s"),
    ],
)
def test_what_ran_is_judged_here_when_the_machine_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, status: int, why: str
) -> None:
    monkeypatch.setattr("vmm.cli.lab_run.LIFE_S", dict.fromkeys(machine.Backend, 1.0))
    program = LOST.replace("RECORDED", str(recorded(tmp_path))) + end
    result = lab(tmp_path, program, "--json", "result.json", "move-*")
    assert result.exit_code == status, result.output
    assert f"lab: {why}" in result.output, result.output
    told = json.loads(Path("result.json").read_text())
    statuses = {each["name"]: each["status"] for each in told["scenarios"]}
    wanted = ["passed", "passed", "inconclusive"]
    assert statuses == dict(zip(NAMES, wanted, strict=True))
    assert list(Path().iterdir()) == [Path("result.json")], "nothing else is left here"


def test_an_interruption_keeps_what_ran_and_says_where(tmp_path: Path) -> None:
    program = LOST.replace("RECORDED", str(recorded(tmp_path)))
    program += f"import os; time.sleep(1); os.kill({os.getpid()}, 2); time.sleep(600)"
    result = lab(tmp_path, program, "--json", "result.json", "move-*")
    assert result.exit_code == 3, result.output
    assert "lab: interrupted in move-between-two\n" in result.output
    assert "lab: status 3 after" in result.output
    assert f"; logs: {tmp_path}/cache/memslot-vmm/runs/1" in result.output
    assert len(json.loads(Path("result.json").read_text())["scenarios"]) == 3


def test_histories_that_were_asked_for_stay(tmp_path: Path) -> None:
    program = LOST.replace("RECORDED", str(recorded(tmp_path))) + "sys.exit()"
    result = lab(tmp_path, program, "--histories", "h.jsonl", "--json", "r.json", "move-*")
    assert result.exit_code == 3, result.output
    assert sorted(path.name for path in Path().iterdir()) == ["h.jsonl", "r.json"]
    assert Path("h.jsonl").read_bytes() == recorded(tmp_path).read_bytes()
    assert len(json.loads(Path("r.json").read_text())["scenarios"]) == 3


def test_a_check_that_ends_leaves_only_what_it_wrote(tmp_path: Path) -> None:
    program = 'report("booted")\nreport("ready")\nover(0)\n'
    result = lab(tmp_path, program, "move-*")
    assert result.exit_code == 0, result.output
    assert "what ran" not in result.output
    assert not list(Path().iterdir())
