"""Scenarios side by side: who runs with whom, in which order results come, and who is accused."""

import errno
from itertools import chain, repeat
from pathlib import Path
from typing import cast

import msgspec
import pytest

from tests.ideal import FEATURES
from tests.played import INFO, SCENARIOS, Kernel, make, played, vmm
from vmm.catalogue import known
from vmm.cli.running import lanes
from vmm.cli.running.carrying import Finished, Orders, carry_out
from vmm.cli.running.claims import claiming
from vmm.cli.running.lanes import Lane, Queue
from vmm.execution.runner import Worker
from vmm.host.child import name_of
from vmm.host.health import Problem
from vmm.scenario.history import Header
from vmm.scenario.operations import (
    Churn,
    Lives,
    Mapping,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.verdict.known.weighing import issues_met

COUNTED = Problem("warn_count went from 0 to 1")


class Took:
    """Takes scenarios, and remembers which."""

    has_work = False

    def __init__(self) -> None:
        self.skipped: list[int] = []
        self.ran: list[int] = []

    def work(self) -> None:
        pass

    def skip(self, index: int, missing: str) -> None:
        self.skipped.append(index)

    def take(self, ran: Finished) -> None:
        self.ran.append(ran.index)

    def end(self) -> None:
        pass


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return played(monkeypatch)


def busy(*scenarios: str) -> list[Lane]:
    worker = cast(Worker, None)
    return [
        Lane(worker, f"vmm77-{number}", scenario=scenario)
        for number, scenario in enumerate(scenarios)
    ]


def taken(queue: Queue, *by: str) -> list[int]:
    """Return in which order lanes take all that there is, the last of them what is left."""
    order = []
    turns = chain(by, repeat(by[-1]))
    while queue:
        order.append(queue.take(first=next(turns) == "first"))
    return order


def splat(process: str) -> Problem:
    lines = ("[ cut here ]", f"WARNING: CPU: 0 PID: 7 Comm: {process} Not tainted")
    return Problem(lines[1], lines)


def shared_out(problems: tuple[Problem, ...], *scenarios: str) -> list[list[Problem]]:
    every = busy(*scenarios)
    lanes.share_out(problems, every)
    return [lane.problems for lane in every]


def test_a_complaint_is_about_the_process_that_it_names() -> None:
    assert shared_out((splat("vmm77-1"),), "one", "two") == [[], [splat("vmm77-1")]]


def test_counters_go_with_what_the_log_says() -> None:
    told = splat("vmm77-0")
    assert shared_out((COUNTED, told), "one", "two") == [[told, COUNTED], []]


def test_a_complaint_that_names_nobody_is_about_all_and_says_so() -> None:
    one, two = shared_out((splat("kworker/0:1"),), "one", "two")
    assert one == two
    assert one[0].what.endswith("(while one and two ran at the same time)")
    one, two = shared_out((COUNTED,), "one", "two")
    assert one == two == [Problem(f"{COUNTED.what} (while one and two ran at the same time)")]


def test_who_runs_alone_is_accused_of_everything() -> None:
    complaints = (splat("kworker/0:1"), COUNTED)
    assert shared_out(complaints, "one") == [list(complaints)]


def test_process_names_fit_into_what_the_kernel_keeps() -> None:
    names = {name_of(lane) for lane in range(64)}
    assert len(names) == 64
    assert all(len(name) <= 15 for name in names)


@pytest.mark.parametrize(
    ("scenario", "alone"),
    [
        (make("move-up"), False),
        (Scenario("s", (Lives("closed", 2),)), False),
        (Scenario("s", (Lives("closed", 2, "kernel"),)), True),
        (Scenario("s", (Churn(5, 3),)), True),
        (Scenario("s", (), (Mapping("a", 512, "hugetlb"),)), True),
        *((each, True) for each in known.scenarios(FEATURES)),
        (make("ring-overrun-in-one-run"), False),
    ],
)
def test_some_need_the_machine_to_themselves(scenario: Scenario, alone: bool) -> None:
    facts = {**INFO.in_brief(), "vendor": "kvm_pvm"}
    issues = issues_met(Header(scenario, FEATURES, facts))
    assert lanes.needs_the_machine(scenario, issues) is alone


def test_long_scenarios_begin_first() -> None:
    long = Scenario("long", (Touch(0),) * 10_000)
    longest = Scenario("longest", (Touch(0),) * 10_001)
    queue = Queue([make("a"), long, make("b"), longest], [0, 1, 2, 3], ())
    assert taken(queue, "other") == [3, 1, 0, 2]


def test_what_may_hang_begins_before_all_others() -> None:
    long = Scenario("long", (Touch(0),) * 10_000)
    queue = Queue([make("a"), long, make("hangs")], [0, 1, 2], {2})
    assert taken(queue, "first") == [2, 1, 0]


def test_the_first_lane_begins_with_what_changes_many_slots() -> None:
    some = Scenario("some", (SetUserMemoryRegion(1),) * 99)
    many = Scenario("many", (SetUserMemoryRegion(1),) * 100)
    more = Scenario("more", (SetUserMemoryRegion(1), Touch(0)) * 101)
    every = [make("a"), some, many, more, make("b")]
    lanes_taking = ("first", "other", "first", "other", "first")
    assert taken(Queue(every, range(5), ()), *lanes_taking) == [3, 0, 2, 1, 4]
    assert taken(Queue(every, range(5), ()), "other") == [0, 1, 4, 2, 3], "none is left over"


def test_what_another_run_has_claimed_is_left_to_it(kernel: Kernel) -> None:
    kernel.features = msgspec.structs.replace(FEATURES, hugetlb_pages=0)
    others = {0, 2}
    claimed: list[int] = []

    def claim(index: int) -> bool:
        claimed.append(index)
        return index not in others

    taker = Took()
    carry_out(Orders(SCENARIOS, kernel.look_at_host(), lambda _: None, jobs=1, claim=claim), taker)
    assert sorted(claimed) == list(range(len(SCENARIOS))), "each is asked for once"
    assert (taker.ran, taker.skipped) == ([1], [3])


def test_a_claim_that_cannot_be_made_is_the_host_s_failure(kernel: Kernel) -> None:
    def claim(index: int) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device", "claims/0")

    orders = Orders(SCENARIOS, kernel.look_at_host(), lambda _: None, jobs=1, claim=claim)
    carried = carry_out(orders, Took())
    assert carried.early == "the host: claims/0: No space left on device"
    assert not carried.error


def test_a_worker_that_finds_no_memory_is_the_host_s_failure(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("vmm.cli.running.carrying.Worker", fail)
    carried = carry_out(Orders(SCENARIOS, kernel.look_at_host(), lambda _: None), Took())
    assert carried.early == "the host: Cannot allocate memory"
    assert not carried.error


def test_scenarios_in_a_row_are_claimed_once(tmp_path: Path) -> None:
    (tmp_path / "done").write_text("1")
    one, other = claiming(tmp_path, tmp_path / "done"), claiming(tmp_path)
    assert [one(0), other(0), other(1), one(1), one(2)] == [True, False, False, False, True]
    assert [other(8), one(9), other(9), one(7)] == [True, False, True, True]


@pytest.mark.parametrize("machines", [1, 2, 3])
def test_each_scenario_is_claimed_by_one_machine(tmp_path: Path, machines: int) -> None:
    claims = [claiming(tmp_path) for _ in range(machines)]
    assert [sum(claim(index) for claim in claims) for index in range(100)] == [1] * 100


def test_results_come_in_order_whoever_ends_first(kernel: Kernel) -> None:
    kernel.differ("create-one")
    kernel.differ("move-up")
    result = vmm("check", "--jobs", "2")
    assert sorted(kernel.ran) == sorted(scenario.name for scenario in SCENARIOS)
    assert kernel.ran[0] == "create-two"
    assert result.exit_code == 1
    assert result.stdout.index("create-one") < result.stdout.index("move-up")
    assert "2 passed, 2 differ" in result.stdout


def test_a_hang_in_one_lane_leaves_the_other_running(kernel: Kernel) -> None:
    kernel.end("create-two", "hung: no end within 20 s; kernel stack: none")
    result = vmm("check", "--jobs", "2")
    assert result.exit_code == 3
    assert "3 passed, 1 inconclusive" in result.stdout
