"""The demo's story, played by an ideal kernel and by one that is wrong."""

import msgspec
import pytest
from rich.text import Text

from tests.ideal import FEATURES, ideal_history
from vmm.cli.demo import recorded
from vmm.host.structure import ARRAY, TREE
from vmm.report.demo import WIDTH, in_ascii, opening, scene_lines
from vmm.report.story import chapters, scenes, story, structure_of
from vmm.scenario.history import Done, History, Refused, Stopped, Touched
from vmm.scenario.operations import SetUserMemoryRegion
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status, judge

HISTORY = ideal_history(story(FEATURES))


def drawn(history: History, structure: str = ARRAY, width: int = WIDTH) -> list[list[str]]:
    """Return each scene as lines without styles."""
    return [
        [line.plain for line in scene_lines(scene, structure, width)] for scene in scenes(history)
    ]


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
    assert scene_lines(scene, TREE)[-2].plain.partition("→ ")[2] in outcomes


@pytest.mark.parametrize("structure", [ARRAY, TREE])
@pytest.mark.parametrize("width", [60, WIDTH])
def test_no_line_is_wider_but_what_is_broken_later(structure: str, width: int) -> None:
    lines = [line.plain for line in opening(HISTORY.header.scenario.mappings, structure, width)]
    for scene in drawn(HISTORY, structure, width):
        lines += [line for line in scene if not line.startswith(("  ioctl", "  array"))]
    assert max(map(len, lines)) == width


def test_the_tree_is_drawn_as_the_kernel_has_it() -> None:
    assert [line.rstrip() for line in drawn(HISTORY, TREE)[5][-7:-3]] == [
        "  tree                               ● slot 0",
        "                            ┌────────────┴────────────┐",
        "                        ● slot 1                 ● slot 400",
        "               ┌────────────┘",
    ]


@pytest.mark.parametrize(
    ("host", "structure"),
    [
        ({}, TREE),
        ({"kernel": "5.16.0-4"}, ARRAY),
        ({"kernel": "5.17.1"}, TREE),
        ({"kernel": "5.14.0-500.el9", "memslots": TREE}, TREE),
        ({"kernel": "6.1", "memslots": "unknown"}, TREE),
    ],
)
def test_the_structure_is_that_of_the_kernel_that_ran(host: dict[str, str], structure: str) -> None:
    header = msgspec.structs.replace(HISTORY.header, host=host)
    history = msgspec.structs.replace(HISTORY, header=header)
    assert structure_of(history) == structure
    other = "array" if structure == TREE else "red-black tree"
    assert not any(other in scene.chapter.words for scene in scenes(history))


def test_the_recorded_run_is_of_this_story_and_right() -> None:
    history = recorded()
    assert history.header.scenario.operations == story(history.header.features).operations
    assert judge(history).status is Status.PASSED
    assert len(list(scenes(history))) == len(chapters(FEATURES))


def test_ascii_is_ascii_and_keeps_styles() -> None:
    for scene in scenes(HISTORY):
        for line in scene_lines(scene, TREE):
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
