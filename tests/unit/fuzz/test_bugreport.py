"""A bug report says what happened, in Markdown and as a mail, and forges nothing."""

import errno
import subprocess
from pathlib import Path

import msgspec
import pytest

from tests.ideal import FEATURES, ideal_history
from vmm.fuzz import bugreport, findings
from vmm.fuzz.bugreport import Section
from vmm.fuzz.findings import Finding, _summary, write
from vmm.host.hostinfo import HostInfo
from vmm.scenario.history import (
    AnyOutcome,
    DirtyPages,
    End,
    HostChange,
    Inspected,
    Mmio,
    Ran,
    Refused,
    RingPages,
    Stopped,
    Swept,
    Touched,
)
from vmm.scenario.operations import (
    AnyOperation,
    ChangeHostMemory,
    CreateGuestMemfd,
    EnableCap,
    GetDirtyLog,
    GuestThread,
    HarvestDirtyRing,
    HostThread,
    Inspect,
    Instruction,
    Mapping,
    Place,
    PreFaultMemory,
    PunchGuestMemfd,
    Race,
    Scenario,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.verdict.identity import Identity
from vmm.verdict.judge import judge

HOST = HostInfo(
    "6.12.0",
    "x86_64",
    "a processor",
    hypervisor=False,
    vendor="kvm_intel",
    tdp="on (ept)",
    modules={"kvm_intel": {"ept": "Y", "debug": "0"}},
    command_line="quiet",
)
SCENARIO = Scenario(
    "moved",
    (
        SetUserMemoryRegion(1, 0x100_000, 0x1000, Place("a")),
        SetUserMemoryRegion(1, 0x200_000, 0x1000, Place("a")),
        SetUserMemoryRegion(1, 0x200_000, 0x1000, Place("a", 0x1000)),
        Touch(0x100_000),
        SetUserMemoryRegion(1),
    ),
    (Mapping("a", 2),),
    survey="none",
)


def told() -> tuple[str, tuple[Section, ...]]:
    history = ideal_history(SCENARIO)
    events = tuple(
        msgspec.structs.replace(event, outcome=Touched(0x1234)) if event.origin == 3 else event
        for event in history.events
    )
    history = msgspec.structs.replace(history, events=events)
    verdict = judge(history)
    log = ("```", "# forged\x1b[2J\nline")
    parts = bugreport.sections(SCENARIO, history, verdict, HOST, log, {"repro.c", "scenario.json"})
    return bugreport.subject(SCENARIO, history, verdict, "something"), tuple(parts)


def test_the_title_says_what_happened() -> None:
    title, _ = told()
    assert title == ("after move of slot 1, read at gpa 0x100000 meets memory, not MMIO")
    assert bugreport.subject(SCENARIO, None, None, "hung\x1b") == "hung\\x1b"


def test_a_call_that_differs_itself_is_its_own_title() -> None:
    history = ideal_history(SCENARIO)
    events = tuple(
        msgspec.structs.replace(event, outcome=Refused(17)) if event.origin == 1 else event
        for event in history.events
    )
    history = msgspec.structs.replace(history, events=events)
    title = bugreport.subject(SCENARIO, history, judge(history), "something")
    assert title == "move of slot 1: EEXIST instead of success"


def test_wrong_memory_and_wrong_exits_are_told_apart() -> None:
    operations = (SCENARIO.operations[0], Touch(0x100_000), Touch(0x300_000))
    history = ideal_history(msgspec.structs.replace(SCENARIO, operations=operations))
    titles = []
    for origin, outcome in (
        (1, Touched(0x1234)),
        (1, Touched(0xFFFFFFFF, (Mmio(0x100_000, False, b"\xff" * 4),))),
        (2, Touched(0xFFFFFFFF, (Mmio(0x300_000, False, b"\xff" * 2),))),
        (2, Stopped("KVM_EXIT_SHUTDOWN")),
    ):
        events = tuple(
            msgspec.structs.replace(event, outcome=outcome) if event.origin == origin else event
            for event in history.events
        )
        wrong = msgspec.structs.replace(history, events=events)
        titles.append(bugreport.subject(wrong.header.scenario, wrong, judge(wrong), "something"))
    assert [title.partition(", ")[2] for title in titles[:3]] == [
        "read at gpa 0x100000 meets the wrong memory",
        "read at gpa 0x100000 meets MMIO, not memory",
        "read at gpa 0x300000 meets the wrong exits",
    ]
    assert "KVM_EXIT_SHUTDOWN instead of 0xffffffff, MMIO read" in titles[3]


@pytest.mark.parametrize(
    ("call", "change"),
    [
        (SetUserMemoryRegion(1, 0x100_000, 0x1000, Place("a")), "no change"),
        (SetUserMemoryRegion(1, 0x100_000, 0x1000, Place("a"), flags=1), "change flags"),
        (SetUserMemoryRegion(1, 0x200_000, 0x1000, Place("a", 0x1000)), "change hva"),
        (SetUserMemoryRegion(1, 0x200_000, 0x2000, Place("a")), "change size"),
    ],
)
def test_a_call_is_named_by_what_it_would_change(call: SetUserMemoryRegion, change: str) -> None:
    title = wrong((SCENARIO.operations[0], call), Refused(errno.EEXIST))
    assert title.startswith(f"{change} of slot 1: EEXIST instead of ")


def wrong(operations: tuple[AnyOperation, ...], outcome: AnyOutcome) -> str:
    """Return the title of a bug that gives the last operation this outcome."""
    scenario = msgspec.structs.replace(SCENARIO, operations=operations)
    history = ideal_history(scenario)
    last = next(at for at, it in enumerate(history.events) if it.origin == len(operations) - 1)
    events = list(history.events)
    events[last] = msgspec.structs.replace(events[last], outcome=outcome)
    history = msgspec.structs.replace(history, events=tuple(events))
    return bugreport.subject(scenario, history, judge(history), "something")


LOGGED = SetUserMemoryRegion(1, 0x100_000, 0x2000, Place("a"), flags=1)
WRITTEN = Touch(0x101_000, "write", value=5)


@pytest.mark.parametrize(
    ("operations", "outcome", "title"),
    [
        (
            (LOGGED, WRITTEN, GetDirtyLog(1)),
            DirtyPages((), words=1),
            "dirty log of slot 1: missing {1}",
        ),
        (
            (LOGGED, WRITTEN, GetDirtyLog(1)),
            DirtyPages((0, 1), words=1),
            "dirty log of slot 1: too many {0}",
        ),
        (
            (EnableCap("DIRTY_LOG_RING", 0x1000), LOGGED, WRITTEN, HarvestDirtyRing()),
            RingPages(((1, 0), (1, 1))),
            "dirty ring of vCPU 0: too many {slot 1: 0}",
        ),
        (
            (LOGGED, WRITTEN, Inspect()),
            Inspected((HostChange("a", 0x40, b"1"),)),
            "host memory holds wrong bytes at a+0x40",
        ),
        (
            (LOGGED, WRITTEN, Inspect()),
            Inspected((HostChange("a", 0x1000, b"\5\0\0\0"), HostChange("a", 0x1800, b"1"))),
            "host memory holds wrong bytes at a+0x1800",
        ),
        ((LOGGED, WRITTEN, Inspect()), Inspected(), "host memory lacks what was written"),
        (
            (LOGGED, Instruction("lock-xadd", 0x101_000, value=1)),
            Ran(cx=7),
            "lock-xadd at gpa 0x101000 ends with wrong registers, flags or exits",
        ),
        (
            (LOGGED, Sweep(0x100_000, count=4)),
            Swept(mmio=(Mmio(0x100_000, False, b"1234"),)),
            "string read from gpa 0x100000 on meets MMIO, not memory",
        ),
    ],
)
def test_a_title_names_the_page_or_the_place(
    operations: tuple[AnyOperation, ...], outcome: AnyOutcome, title: str
) -> None:
    assert wrong(operations, outcome) == f"after create of slot 1, {title}"


UNMAPPED = ChangeHostMemory(Place("a"), 2, "unmap")
READ = Touch(0x100_000)
OF_PAGE_1 = Touch(0x101_000)
OTHER = SetUserMemoryRegion(2, 0x300_000, 0x1000, Place("a"))


@pytest.mark.parametrize(
    ("operations", "title"),
    [
        (
            (LOGGED, UNMAPPED, READ),
            "after munmap on 2 pages at a+0x0, read at gpa 0x100000 meets memory, not MMIO",
        ),
        (
            (LOGGED, UNMAPPED, OTHER, READ),
            "after munmap on 2 pages at a+0x0 and create of slot 2, "
            "read at gpa 0x100000 meets memory, not MMIO",
        ),
        (
            (CreateGuestMemfd("f", 0x1000), LOGGED, PunchGuestMemfd("f", 0, 0x1000), OF_PAGE_1),
            "after fallocate(f, PUNCH_HOLE|KEEP_SIZE, offset=0x0, len=0x1000), "
            "read at gpa 0x101000 meets the wrong memory",
        ),
        (
            (LOGGED, UNMAPPED, SetUserMemoryRegion(1), READ),
            "after delete of slot 1, read at gpa 0x100000 meets memory, not MMIO",
        ),
    ],
)
def test_a_title_names_the_change_of_host_memory_that_was_not_followed(
    operations: tuple[AnyOperation, ...], title: str
) -> None:
    assert wrong(operations, Touched(0x9B10_0000)) == title


def test_a_title_fits_a_subject() -> None:
    instruction = Instruction("lock-xadd", 0x101_000, value=1)
    title = wrong((LOGGED, instruction), Stopped("x" * 150, "y" * 150))
    assert len(title) == 150
    assert title.endswith("...")


def test_steps_are_named_by_what_they_do() -> None:
    _, (steps, memory, *_) = told()
    own, *steps_of_scenario = steps.lines
    assert own.startswith("create, for the test guest itself: KVM_SET_USER_MEMORY_REGION(slot=400")
    named = [line.partition(":")[0] for line in steps_of_scenario[:3]]
    assert named == ["create", "move", "change hva"]
    assert steps_of_scenario[2].endswith("-> EINVAL")
    assert steps_of_scenario[4].startswith("delete: ")
    assert "2 pages of anonymous memory" in memory.lines[0]
    assert "memslot 400 at gpa 0xffff0000" in memory.lines[1]


def test_memory_of_one_page_is_said_to_have_a_content() -> None:
    one, two = (bugreport._mapping(Mapping("a", pages)) for pages in (1, 2))
    assert one == "a: 1 page of anonymous memory, with its own content"
    assert two == "a: 2 pages of anonymous memory, each with its own content"


def test_what_the_threads_of_a_race_do_is_said() -> None:
    moves = (
        SetUserMemoryRegion(1, 0x200_000, 0x1000, Place("a")),
        SetUserMemoryRegion(1, 0x100_000, 0x1000, Place("a")),
    )
    guests = (
        GuestThread((Touch(0x200_000),), windows=1),
        GuestThread((PreFaultMemory(0x100_000, 0x1000), Touch(0x100_000)) * 20, migrates=7),
    )
    race = Race((HostThread(moves, rounds=30, pause=1), HostThread((), rounds=0)), guests)
    scenario = Scenario("race", (SCENARIO.operations[0], race), SCENARIO.mappings)
    parts = tuple(bugreport.sections(scenario, None, None, HOST, (), set()))
    (threads,) = (part for part in parts if "Threads" in part.title)
    steps = parts[0].lines
    assert threads.title == f"Threads of step {len(steps)}"
    assert steps[-1] == "2 host threads and 2 vCPUs act at the same time"
    assert threads.lines[0] == "host thread 0, 30 times, with 1 window of each vCPU between:"
    assert threads.lines[2].startswith("- KVM_SET_USER_MEMORY_REGION(slot=1, flags=0, guest_phys_a")
    assert threads.lines[3:7] == (
        "host thread 1, until the others end:",
        "vCPU 0, up to 1 window, in each:",
        "- reads 4 bytes at gpa 0x200000",
        "vCPU 1, up to 20000 windows, on another thread after every 7, in each:",
    )
    assert threads.lines[7].startswith("- KVM_PRE_FAULT_MEMORY(gpa=0x100000")
    assert threads.lines[-1] == "- and 16 more"


def test_what_matters_of_the_host_and_how_to_bisect_is_said() -> None:
    title, parts = told()
    text = bugreport.markdown(title, "summary\n", parts)
    assert "- kernel: 6.12.0\n" in text
    assert "- kvm_intel: ept=Y\n" in text
    assert "- kernel command line: quiet\n" in text
    assert "started as `vmm" in text
    assert "vmm judge" not in text, "there is no such file"
    assert "# Attached, or beside this text: repro.c, scenario.json\n" in text


def test_what_is_said_of_bisecting_does_it(tmp_path: Path) -> None:
    *_, again = told()[1]
    assert max(map(len, again.lines)) <= 73, "a mail indents them by 2"
    (alone,) = (line for line in again.lines if line.startswith("./repro"))
    for status, said in {0: 0, 1: 1, 2: 125, 3: 125, 4: 125, 139: 125}.items():
        ran = alone.replace("./repro", f"(exit {status})")
        assert subprocess.run(["sh", "-c", ran], check=False).returncode == said
    script = "\n".join(again.lines).partition("git bisect run ")[2]
    for made, found, said in ((0, 0, 0), (0, 1, 1), (0, 125, 125), (2, 0, 125)):
        (tmp_path / "make").write_text(f"#!/bin/sh\nexit {made}\n")
        (tmp_path / "vmm").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/ran\nexit {found}\n')
        for name in ("make", "vmm"):
            (tmp_path / name).chmod(0o755)
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        assert subprocess.run(["sh", "-c", script], env=path, check=False).returncode == said
    lab = (tmp_path / "ran").read_text()
    assert lab == "lab run --bisect --kernel . -- run scenario.json\n"


@pytest.mark.parametrize(
    ("found_with", "seconds", "said"),
    [
        (
            9,
            1.25,
            ("Found by `vmm fuzz` (seed 3) on ", "after 1.2 s.", "from 9 to 5 operations in 7"),
        ),
        (5, 1.25, ("after 1.2 s.", "None of its 5 operations could be left out, in 7 tries.")),
        (2, 0, ("from a scenario that was given.", "now: 5 operations, after 7 tries.")),
    ],
)
def test_the_summary_says_how_it_was_found(
    found_with: int, seconds: float, said: tuple[str, ...]
) -> None:
    identity = Identity("kind", ("rule",), "outcome")
    finding = Finding(SCENARIO, identity, 3, found_with=found_with, tries=7, seconds=seconds)
    summary = _summary(finding, None)
    assert all(each in summary for each in said), summary
    assert ("seed" in summary) == bool(seconds)


def test_nothing_forges_a_line() -> None:
    title, parts = told()
    text = bugreport.markdown(title, "summary\n", parts)
    assert "\x1b" not in text
    assert "\n# forged" in text, "within the fence, escaped"
    assert "# forged\\x1b[2J\\nline" in text
    assert text.count("```") == 2 * sum(part.kind in ("verbatim", "lines") for part in parts)


def test_a_mail_has_a_subject_and_short_lines() -> None:
    title, parts = told()
    text = bugreport.mail(title, "A summary of one line.\n", parts)
    said = "Subject: [BUG] KVM: after move of slot 1, read meets memory, not MMIO\n"
    assert text.startswith(said)
    assert "A summary of one line.\n\nSteps:\n\n" in text
    log, rest = text.partition("Kernel log:")[2].partition("Host:")[::2]
    assert "forged" in log
    body = text.partition("Steps:")[2].partition("Kernel log:")[0] + rest
    assert max(map(len, body.splitlines())) <= 75
    assert "```" not in text.replace("  ```", "")


def test_a_slot_that_fits_no_line_is_broken_before_what_it_maps() -> None:
    short = "[1] slot 1: gpa 0x100000..0x101000 (1 page) -> a+0x0, flags 0"
    long = "[0] slot 400: gpa 0xffff0000..0x100000000 (16 pages) -> guest+0x0, flags 0"
    text = bugreport.mail("", "", [Section("Slots", (long, short), "lines")])
    first, _, second = long.rpartition(" -> ")
    assert f"\n  {first}\n      -> {second}\n  {short}\n" in text


@pytest.mark.parametrize(
    ("title", "subject"),
    [
        ("move of slot 1: EEXIST instead of success", None),
        (
            "after fallocate(f, PUNCH_HOLE, offset=0x0), read at gpa 0x1000 meets wrong memory",
            "after fallocate(), read at gpa 0x1000 meets wrong memory",
        ),
        (
            "after delete of slot 1, KVM_GET_DIRTY_LOG(slot=1): ENOENT instead of dirty pages {}",
            "after delete of slot 1, KVM_GET_DIRTY_LOG(): ENOENT",
        ),
        (
            "after MADV_DONTNEED on 1 page at a+0x2000, read at gpa 0x140 meets the wrong memory",
            "after MADV_DONTNEED on 1 page, read meets the wrong memory",
        ),
        (
            "after change flags of slot 1, dirty ring of vCPU 0: missing {slot 1: 0, 63}",
            "dirty ring of vCPU 0: missing pages",
        ),
        (
            "after create of slot 513, lock-cmpxchg8b at gpa 0x100ffc ends with wrong registers, "
            "flags or exits",
            "after create of slot 513, lock-cmpxchg8b ends wrongly",
        ),
        (
            "after userfaultfd for missing pages on 3 pages at a+0x0, read meets the wrong memory",
            "read meets the wrong memory",
        ),
        (
            "after create of slot 1, in a race, host harvests the ring: dirty pages 1, but not 2",
            "in a race, host harvests the ring: dirty pages 1, but not 2",
        ),
        ("read of " + "word " * 20, "read of " + "word " * 10 + "..."),
    ],
)
def test_a_subject_fits_a_line(title: str, subject: str | None) -> None:
    line = bugreport.mail(title, "", ()).partition("\n")[0]
    assert line == f"Subject: [BUG] KVM: {subject or title}"
    assert len(line.removeprefix("Subject: ")) <= 75


def test_a_run_that_our_own_time_limit_ends_is_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds to write a finding at the end are few on an emulated machine."""
    history = ideal_history(SCENARIO)
    hung = msgspec.structs.replace(
        history, events=history.events[:1], end=End("hung: no end within 2 s; stack")
    )
    monkeypatch.setattr(findings, "run_isolated", lambda *_, **__: hung)
    kinds = (Identity("Touch", ("reach",), "MMIO"), Identity("hung"))
    for identity, is_kept in zip(kinds, (False, True), strict=True):
        finding = Finding(SCENARIO, identity, 1)
        path, _ = write(tmp_path, finding, FEATURES, HOST, 2.0)
        assert (path / "history.jsonl").exists() is is_kept
        assert ("hung" in (path / "report.md").read_text()) is is_kept
