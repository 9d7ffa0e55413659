"""The demo's story, played by an ideal kernel and by one that is wrong."""

import msgspec
import pytest
from rich.text import Text

from tests.ideal import FEATURES, ideal_history
from vmm.report.demo import WIDTH, in_ascii, opening, scene_lines
from vmm.report.story import chapters, scenes, story
from vmm.scenario.history import Done, History, Refused, Stopped, Touched
from vmm.scenario.operations import SetUserMemoryRegion
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status, judge

HISTORY = ideal_history(story(FEATURES))


def drawn(history: History) -> list[list[str]]:
    """Return each scene as lines without styles."""
    return [[line.plain for line in scene_lines(scene)] for scene in scenes(history)]


@pytest.mark.parametrize("zero_page", [True, False])
def test_the_story_is_a_scenario_that_may_run_and_passes(zero_page: bool) -> None:
    features = msgspec.structs.replace(FEATURES, zero_page=zero_page)
    validate(story(features))
    history = ideal_history(story(features), features)
    assert judge(history).status is Status.PASSED
    assert len(list(scenes(history))) == len(chapters(features))


def test_slots_stand_in_the_array_with_the_highest_gpa_in_front() -> None:
    arrays = [[slot.slot_id for slot in scene.slots] for scene in scenes(HISTORY)]
    assert arrays == [
        [400],
        [400, 0],
        [400, 1, 0],
        [400, 1, 0],
        [400, 0, 1],
        [400, 0, 1, 2],
        [400, 0, 2],
        [400, 0, 2, 3],
    ]


def test_the_drawing_shows_call_memory_slots_array_and_touches() -> None:
    assert drawn(HISTORY)[2][3:] == [
        "  ioctl  SET_USER_MEMORY_REGION slot=1 gpa=0x8000 size=0x2000 hva=blue → ok",
        "  gpa     0x0             0x4000          0x8000          0xc000",
        "                                              ▼",
        "  memory  ·   ·   A0  A1  A2  ·   ·   ·   B0  B1  ·   ·   ·   ·   ·   ·  ",
        "  slots          └─ slot 0 ─┘            └──1───┘",
        "  array  [0] slot 400  [1] slot 1  [2] slot 0  (front: highest gpa)",
        "  guest  writes 0xcafe at gpa 0x9040 → written, no exit",
        "  host   sees 0xcafe in page 1 of blue, at 0x40",
        "",
    ]


def test_a_move_leaves_nothing_behind_and_carries_the_content_along() -> None:
    assert drawn(HISTORY)[4][-3:-1] == [
        "  guest  reads gpa 0x2040 → no slot here: MMIO exit",
        "  guest  reads gpa 0xc040 → finds the mark of amber, page 0",
    ]


def test_nothing_at_address_zero_is_told_as_such() -> None:
    features = msgspec.structs.replace(FEATURES, zero_page=False)
    history = ideal_history(story(features), features)
    scene = list(scenes(history))[5]
    (touch,) = (event for event in scene.events if not isinstance(event.outcome, Done))
    outcomes = {"a slot without memory: MMIO exit", "the vCPU stops: EFAULT"}
    assert isinstance(touch.outcome, Touched | Stopped)
    assert scene_lines(scene)[-2].plain.partition("→ ")[2] in outcomes


def test_no_line_is_wider_than_the_terminal() -> None:
    lines = [*opening(HISTORY.header.scenario.mappings)]
    for scene in scenes(HISTORY):
        lines += scene_lines(scene)
    assert max(len(line.plain) for line in lines) == WIDTH


def test_ascii_is_ascii_and_keeps_styles() -> None:
    for scene in scenes(HISTORY):
        for line in scene_lines(scene):
            plain: Text = in_ascii(line)
            assert plain.plain.isascii()
            assert plain.spans == line.spans


def test_the_story_ends_where_the_kernel_differs() -> None:
    """The wrong answer is shown; what would follow it is not."""
    at = next(
        i
        for i, event in enumerate(HISTORY.events)
        if isinstance(event.operation, SetUserMemoryRegion) and event.operation.slot == 1
    )
    events = list(HISTORY.events)
    events[at] = msgspec.structs.replace(events[at], outcome=Refused(17))
    told = drawn(msgspec.structs.replace(HISTORY, events=tuple(events)))
    assert len(told) == 3
    assert told[-1][3].endswith("hva=blue → EEXIST")
