"""A check whose machine ends, or is lost: what ran is judged here. QEMU is played."""

import errno
import io
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.ideal import ideal_history
from tests.played import with_outcome
from tests.unit.cli.lab.test_lab import kernel
from vmm.catalogue import catalogue
from vmm.cli.input.files import histories_from
from vmm.cli.lab.live import Live
from vmm.cli.lab.outside import Command, Site, check_outside
from vmm.cli.lab.progress import Progress
from vmm.cli.main import main
from vmm.cli.running.carrying import Carried, Finished
from vmm.cli.running.host import Host
from vmm.cli.running.transcript import Packed, Transcript
from vmm.execution.runner import Record
from vmm.host.hostinfo import host_in_brief
from vmm.lab import machine
from vmm.lab.machine import QEMU
from vmm.lab.run import Ending
from vmm.scenario.codec import history_lines
from vmm.scenario.features import Features
from vmm.scenario.history import Header, Refused

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
def place(cache_with_init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(cache_with_init, tmp_path / "cache")
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


def transcript(
    tmp_path: Path,
    closing: Carried | None = None,
    damage: bytes = b"",
    is_wrong: bool = False,
    ran: Sequence[str] = NAMES[:2],
) -> Path:
    """Return what a machine leaves in which some of the scenarios ran."""
    features = Features()
    host = Host(host_in_brief({"kernel": "6.12.1"}), features)
    chosen = [each for each in catalogue(features) if each.name in NAMES]
    file = tmp_path / f"transcript-{'-'.join(ran)}"
    with file.open("wb", buffering=0) as stream:
        written = Transcript(stream, host, chosen, Live(None, ""))
        for index, scenario in enumerate(chosen):
            if scenario.name in ran:
                history = ideal_history(scenario)
                if is_wrong:
                    history = with_outcome(history, 0, Refused(errno.EEXIST))
                data = b"".join(history_lines(history))
                header = Header(scenario, features, host.info.in_brief())
                written.take(Finished(index, Record(header, data), 0.5))
        stream.write(damage)
        if closing is not None:
            written.close(closing)
    return file


LOST = """
report("booted")
report("ready")
report("scenarios 3")
for name in ("move-up", "move-down"):
    report(f"begin {name}")
open(asked[asked.index("--transcript") + 1], "wb").write(open("TRANSCRIPT", "rb").read())
report("begin move-between-two")
say("last words")
"""


@pytest.mark.parametrize(
    ("end", "status", "why"),
    [
        ("sys.exit()", 3, "the machine stopped in move-between-two without the command's status"),
        ("say('Kernel panic - not syncing: x'); sys.exit()", 1, "the kernel complained: Kernel pa"),
        ("time.sleep(600)", 3, "the machine hangs in move-between-two: no sign of life for 4 s"),
    ],
)
def test_what_ran_is_judged_here_when_the_machine_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, status: int, why: str
) -> None:
    # A machine that says nothing yet is given as long: Python has to start, on a busy host too.
    monkeypatch.setattr("vmm.cli.lab.run.LIFE_S", dict.fromkeys(machine.Backend, 4.0))
    program = LOST.replace("TRANSCRIPT", str(transcript(tmp_path))) + end
    result = lab(tmp_path, program, "--json", "result.json", *NAMES)
    assert result.exit_code == status, result.output
    assert f"lab: {why}" in result.output, result.output
    told = json.loads(Path("result.json").read_text())
    statuses = {each["name"]: each["status"] for each in told["scenarios"]}
    wanted = ["passed", "passed", "inconclusive"]
    assert statuses == dict(zip(NAMES, wanted, strict=True))
    assert list(Path().iterdir()) == [Path("result.json")], "nothing else is left here"


def test_an_interruption_keeps_what_ran_and_says_where(tmp_path: Path) -> None:
    program = LOST.replace("TRANSCRIPT", str(transcript(tmp_path)))
    program += f"import os; time.sleep(1); os.kill({os.getpid()}, 2); time.sleep(600)"
    result = lab(tmp_path, program, "--json", "result.json", *NAMES)
    assert result.exit_code == 3, result.output
    assert "lab: interrupted in move-between-two\n" in result.output
    assert "lab: status 3 after" in result.output
    assert f"; logs: {tmp_path}/cache/memslot-vmm/runs/1" in result.output
    assert len(json.loads(Path("result.json").read_text())["scenarios"]) == 3


def test_histories_that_were_asked_for_stay(tmp_path: Path) -> None:
    program = LOST.replace("TRANSCRIPT", str(transcript(tmp_path))) + "sys.exit()"
    result = lab(tmp_path, program, "--histories", "h.jsonl", "--json", "r.json", *NAMES)
    assert result.exit_code == 3, result.output
    assert sorted(path.name for path in Path().iterdir()) == ["h.jsonl", "r.json"]
    histories = histories_from(Path("h.jsonl"))
    assert [each.header.scenario.name for each in histories] == list(NAMES)
    assert len(json.loads(Path("r.json").read_text())["scenarios"]) == 3


def ending(tmp_path: Path, damage: bytes = b"", last: str = "over(0)") -> str:
    """Return the program of a machine that ends as it should."""
    left = transcript(tmp_path, Carried((0,), ("no log",), 1.0), damage)
    return f"{LOST.replace('TRANSCRIPT', str(left))}{last}\n"


def test_a_check_is_judged_outside_of_its_machine(tmp_path: Path) -> None:
    result = lab(tmp_path, ending(tmp_path), "-v", *NAMES[:2])
    assert result.exit_code == 3, result.output
    assert "other scenarios than this host" in result.output, "what is asked for is checked"
    result = lab(tmp_path, ending(tmp_path), "-v", *NAMES)
    assert result.exit_code == 3, result.output
    assert "1 scenario did not run (interrupted): move-between-two" in result.output
    assert "no log" in result.output
    assert not list(Path().iterdir())
    kept = tmp_path / "cache/memslot-vmm/runs/2/histories.jsonl"
    assert len(list(histories_from(kept))) == 2


def test_enough_that_differ_end_the_machine(tmp_path: Path) -> None:
    program = LOST.replace("TRANSCRIPT", str(transcript(tmp_path, is_wrong=True)))
    words = ("--max-differences", "2", "--json", "r.json", *NAMES)
    result = lab(tmp_path, f"{program}time.sleep(600)", *words)
    assert result.exit_code == 1, result.output
    assert "gave up" not in result.output
    told = json.loads(Path("r.json").read_text())
    assert [each["status"] for each in told["scenarios"]] == ["differs", "differs"]
    assert told["early"].endswith(" in 2 scenarios: --max-differences 2 is reached")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (b"\n", "what the machine wrote cannot be read: Input data was truncated"),
        (b"{}\n", "what the machine wrote cannot be read: Object missing required field `type`"),
        (b'{"type": "\xff"}\n', "what the machine wrote cannot be read: "),
        (b"[" * 5000 + b"\n", "what the machine wrote cannot be read: "),
        (
            b'{"type":"ran","index":3,"size_bytes":0,"seconds":0,"reason":"","problems":[]}\n',
            "what the machine wrote has no scenario 3",
        ),
        (b'{"type":"skipped","index":1,"missing":"x"}\n', "has no scenario 1, or twice"),
        (
            b'{"type":"ran","index":2,"size_bytes":-1,"seconds":0,"reason":"","problems":[]}\n',
            "what the machine wrote cannot be read: Expected `int` >= 0",
        ),
    ],
)
def test_a_damaged_transcript_is_no_verdict(tmp_path: Path, damage: bytes, why: str) -> None:
    result = lab(tmp_path, ending(tmp_path, damage), *NAMES)
    assert result.exit_code == 3, result.output
    assert why in result.output
    assert "Traceback" not in result.output


def shared(tmp_path: Path, second: str) -> str:
    """Return the program of two machines that share a check; ``second`` ends the second one."""
    one = transcript(tmp_path, Carried((0,), (), 1.0), ran=(NAMES[0], NAMES[2]))
    two = transcript(tmp_path, ran=(NAMES[1],) if second == "over(0)" else ())
    return f"""
report("booted")
report("ready")
report("scenarios 3")
file, claims = (asked[asked.index(word) + 1] for word in ("--transcript", "--claims"))
assert os.path.isdir(claims) and os.path.dirname(file) == os.path.dirname(claims)
is_first = file.endswith("0")
report("begin " + ("{NAMES[0]}" if is_first else "{NAMES[1]}"))
open(file, "wb").write(open("{one}" if is_first else "{two}", "rb").read())
if is_first:
    over(0)
{second}
"""


@pytest.mark.parametrize(
    ("second", "status", "found"),
    [
        ("sys.exit()", 3, ["passed", "inconclusive", "passed"]),
        ("say('Kernel panic - not syncing: x')", 1, ["passed", "inconclusive", "passed"]),
        ("over(0)", 3, ["passed", "passed", "passed"]),  # It has no last word.
    ],
)
def test_machines_that_share_a_check_make_one_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str, status: int, found: list[str]
) -> None:
    monkeypatch.setattr("vmm.cli.lab.outside._LEAST", 2)
    monkeypatch.setattr("vmm.cli.lab.run.usual_number", lambda *_: 8)
    result = lab(tmp_path, shared(tmp_path, second), "--json", "r.json", *NAMES)
    assert result.exit_code == status, result.output
    told = json.loads(Path("r.json").read_text())
    assert [each["name"] for each in told["scenarios"]] == list(NAMES)
    assert [each["status"] for each in told["scenarios"]] == found
    assert told["early"]
    assert list(Path().iterdir()) == [Path("r.json")]
    logs = tmp_path / "cache/memslot-vmm/runs/1"
    assert (logs / "kernel.log").exists()
    assert (logs / "machine-2/kernel.log").exists()


def test_a_machine_whose_check_left_nothing_is_no_pass(tmp_path: Path) -> None:
    program = 'report("booted")\nreport("ready")\nover(0)\n'
    result = lab(tmp_path, program, "--json", "r.json", "move-*")
    assert result.exit_code == 3, result.output
    assert json.loads(Path("r.json").read_text())["early"] == "the machine's check has left nothing"


def test_a_check_that_cannot_begin_has_its_own_status(tmp_path: Path) -> None:
    program = 'report("booted")\nreport("ready")\nover(2)\n'
    result = lab(tmp_path, program, "--json", "r.json", "move-*")
    assert result.exit_code == 2, result.output
    assert not list(Path().iterdir())


GOES_ON = """
report("booted")
report("ready")
report("scenarios 3")
file = asked[asked.index("--transcript") + 1]
number = int(os.path.basename(file))
done = open(asked[asked.index("--done") + 1]).read()
is_alone = "--jobs" in asked
begins, transcript, last = STEPS[number]
assert (done, is_alone) == (DONE[number], number in ALONE), (done, is_alone)
for name in begins:
    report(f"begin {name}")
open(file, "wb").write(open(transcript, "rb").read())
if last:
    say(last)
    sys.exit()
over(0)
"""
PANIC = "Kernel panic - not syncing: x"


def goes_on(
    tmp_path: Path, steps: Sequence[tuple[Sequence[str], str]], done: Sequence[str], *alone: int
) -> str:
    """Return the program of machines, one after the other: what begins and passes, and its end.

    What passes is what begins, but for the last, which is under way when a machine is lost.
    """
    parts = []
    for number, (begins, last) in enumerate(steps):
        passed = [name.removesuffix("?") for name in begins if not name.endswith("?")]
        closing = None if last else Carried((0,), (), 1.0)
        left = transcript(tmp_path, closing, ran=passed)
        kept = left.rename(tmp_path / f"part-{number}")
        parts.append(([name.removesuffix("?") for name in begins], str(kept), last))
    return f"STEPS, DONE, ALONE = {parts!r}, {list(done)!r}, {alone!r}\n{GOES_ON}"


def test_another_machine_goes_on_where_one_was_lost(tmp_path: Path) -> None:
    up, down, between = NAMES
    steps = [((up, f"{down}?"), PANIC), ((between,), "")]
    program = goes_on(tmp_path, steps, ["", "0 1"])
    result = lab(tmp_path, program, "--json", "r.json", *NAMES)
    assert result.exit_code == 1, result.output
    assert "another machine goes on, scenarios left: 1\n" in result.output
    told = json.loads(Path("r.json").read_text())
    found = {each["name"]: (each["status"], each["failed"]) for each in told["scenarios"]}
    assert found == {
        up: ("passed", False),
        down: ("inconclusive", True),
        between: ("passed", False),
    }
    assert PANIC in str(told["scenarios"][1]["kernel_complaints"])
    assert not told["early"]


def test_what_was_under_way_together_runs_one_at_a_time_then(tmp_path: Path) -> None:
    up, down, between = NAMES
    steps = [((f"{up}?", f"{down}?"), PANIC), ((up, f"{down}?"), PANIC), ((between,), "")]
    program = goes_on(tmp_path, steps, ["", "2", "0 1"], 1)
    result = lab(tmp_path, program, "--json", "r.json", *NAMES)
    assert result.exit_code == 1, result.output
    assert f"runs what was under way, one at a time: {up}, {down}\n" in result.output
    told = json.loads(Path("r.json").read_text())
    assert [each["status"] for each in told["scenarios"]] == ["passed", "inconclusive", "passed"]
    assert not told["early"]


def test_a_loss_that_does_not_come_again_is_a_difference_all_the_same(tmp_path: Path) -> None:
    up, down, between = NAMES
    steps = [((f"{up}?", f"{down}?"), PANIC), ((up, down), ""), ((between,), "")]
    program = goes_on(tmp_path, steps, ["", "2", "0 1"], 1)
    result = lab(tmp_path, program, "--json", "r.json", *NAMES)
    assert result.exit_code == 1, result.output
    told = json.loads(Path("r.json").read_text())
    assert [each["status"] for each in told["scenarios"]] == ["passed", "passed", "passed"]
    assert f"lab: the kernel complained: {PANIC}\n" in result.output


def test_no_more_machines_are_lost_than_is_bearable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, down, between = NAMES
    program = goes_on(tmp_path, [((f"{up}?",), PANIC), ((f"{down}?",), PANIC)], ["", "0"])
    monkeypatch.setattr("vmm.cli.lab.run.Site", partial(Site, more_boots=1))
    result = lab(tmp_path, program, "--json", "r.json", *NAMES)
    assert result.exit_code == 1, result.output
    told = json.loads(Path("r.json").read_text())
    assert [each["status"] for each in told["scenarios"]] == ["inconclusive", "inconclusive"]
    assert told["early"] == f"the kernel complained: {PANIC}"
    assert told["not_run"] == [between]


def test_without_shared_files_machines_get_shares_and_send_what_they_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Command] = []

    def boot(asked: Sequence[Command]) -> list[Ending]:
        commands.extend(asked)
        for each in asked:
            assert each.out is not None
            done = Path(each.words[each.words.index("--done") + 1]).read_text()
            rest = [n for n in NAMES if str(NAMES.index(n)) not in done.split()]
            text = transcript(tmp_path, Carried((0,), (), 1.0), ran=rest).read_bytes()
            line = io.BytesIO()
            packed = Packed(line)
            packed.write(memoryview(text[:1000]))
            packed.write(memoryview(text[1000:]))
            for at in range(0, len(line.getvalue()), 7):
                each.out(line.getvalue()[at : at + 7])
        return [Ending(0) for _ in asked]

    monkeypatch.setattr("vmm.cli.lab.outside._LEAST", 2)
    place = Site("6.12.1", tmp_path, Progress(), 2, share_files=False)
    status, _ = check_outside(("check", "--json", "r.json", *NAMES), boot, place)
    assert status == 0
    assert [each.words[:3] for each in commands] == [("check", "--transcript", "-")] * 2
    told = json.loads(Path("r.json").read_text())
    assert [each["status"] for each in told["scenarios"]] == ["passed"] * 3
