"""The result file: one type that is written, read and published as a JSON Schema."""

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from tests.ideal import ideal_history
from tests.results import EVERY_KIND, LEFT, passed, run_of
from vmm.report import resultfile
from vmm.report.json import run_text
from vmm.report.resultfile import ResultError, parse_result, result_file, schema
from vmm.scenario.features import PerVm
from vmm.scenario.operations import (
    GuestThread,
    Instruction,
    Mapping,
    Place,
    Race,
    Scenario,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.verdict.result import judged

ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / "docs/result.schema.json"
RUN = run_of(*EVERY_KIND, not_run=LEFT)


def test_the_published_schema_is_that_of_the_type() -> None:
    again = "made by `python -m vmm.report.resultfile > vmm/report/result.schema.json`"
    assert json.loads(PUBLISHED.read_text()) == json.loads(json.dumps(schema())), again
    packaged = Path(resultfile.__file__).with_name("result.schema.json")
    assert packaged.read_bytes() == PUBLISHED.read_bytes()


def test_results_keep_to_the_published_schema() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text()))
    data = json.loads(run_text(RUN))
    validator.validate(data)
    data["scenarios"][0]["status"] = "fine"
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(data)


def test_a_result_is_read_as_it_was_written() -> None:
    run = run_of(*(each for each in EVERY_KIND if each.scenario.name not in ("move-wrong",)))
    one = result_file(run_of(passed("a", "x")))
    read = parse_result(run_text(run_of(passed("a", "x"))).encode(), "f")
    assert msgspec.structs.replace(read, time=one.time) == one  # Written a moment later.
    assert len(parse_result(run_text(run).encode(), "f").scenarios) == len(run.checked)


def test_features_that_only_another_version_knows_are_left_out() -> None:
    data = json.loads(run_text(RUN))
    wanted = parse_result(json.dumps(data).encode(), "f")
    data["features"] |= {"time_travel": True, "protected": {"time_travel": 1}}
    read = parse_result(json.dumps(data).encode(), "f")
    assert read.features.protected == PerVm()
    features = msgspec.structs.replace(read.features, protected=wanted.features.protected)
    assert msgspec.structs.replace(read, features=features) == wanted
    data["features"]["nr_memslots"] = "many"
    with pytest.raises(ResultError, match=r"features\.nr_memslots"):
        parse_result(json.dumps(data).encode(), "f")


def test_steps_say_what_happened() -> None:
    (one,) = result_file(run_of(passed("a", "x"))).scenarios
    own, create, touch, delete, end = one.steps
    assert (own.origin, create.origin, touch.origin, delete.origin, end.origin) == (-1, 0, 1, 2, 3)
    assert create.outcome == "success"
    assert create.rule == "create"
    assert create.slots is not None
    assert [(slot.slot_id, slot.base_gfn, slot.npages) for slot in create.slots] == [
        (400, 0xFFFF0, 16),
        (1, 0x10, 1),
    ]
    assert (0, 0xF, 1, "r", "mmio") in [each[:5] for each in map(tuple_of, create.met)]
    assert (0, 0x10, 1, "r", "a", 0) in map(tuple_of, create.met)
    assert touch.slots is None
    assert touch.outcome.endswith("(page 0 of a), no exit")
    assert delete.slots is not None
    assert [slot.slot_id for slot in delete.slots] == [400]
    assert end.slots == ()


def tuple_of(met: object) -> tuple[object, ...]:
    return tuple(getattr(met, name) for name in met.__struct_fields__)  # type: ignore[attr-defined]


def test_steps_say_what_instructions_met() -> None:
    scenario = Scenario(
        "instructions",
        (
            SetUserMemoryRegion(1, 0x10_000, 0x1000, Place("a")),
            Instruction("lock-xadd", 0x10_040, value=1),
            Instruction("lock-xadd", 0x20_040, value=1),
            Sweep(0xF_800, count=0x400),
        ),
        (Mapping("a", 1),),
        survey="none",
    )
    steps = judged(ideal_history(scenario)).steps
    inside, outside, sweep = ([tuple_of(met) for met in step.met] for step in steps[2:5])
    assert inside == [(0, 0x10, 1, "i", "memory", 0)]
    assert outside == [(0, 0x20, 1, "r", "mmio", 0), (0, 0x20, 1, "w", "mmio", 0)]
    assert sweep == [(0, 0xF, 1, "r", "mmio", 0), (0, 0x10, 1, "r", "memory", 0)]
    assert [step.touches for step in steps[2:5]] == [1, 1, 1]


def test_the_step_of_a_race_says_what_its_threads_do() -> None:
    race = Race((), (GuestThread((Touch(0x10_000),), windows=2),))
    (step,) = (
        each for each in judged(ideal_history(Scenario("race", (race,)))).steps if each.origin == 0
    )
    assert step.notes[:2] == ("vCPU 0, up to 2 windows, in each:", "- reads 4 bytes at gpa 0x10000")


def test_a_difference_marks_its_step() -> None:
    scenario = next(s for s in result_file(RUN).scenarios if s.name == "move-wrong")
    assert [step.differs for step in scenario.steps] == [None, -1]
    assert all(step.differs is None for step in result_file(RUN).scenarios[0].steps)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "not a result of `vmm check --json`: "),
        (b"[1]", "not a result of `vmm check --json`: "),
        (b"\xff\xfe", "not a result of `vmm check --json`: "),
        (b"[" * 5000, "not a result of `vmm check --json`: "),
        (b'{"format": 1, "status": "passed"}', "missing required field"),
        (
            b'{"type":"history","format":1}\n{"type"',
            "a history, not a result: `vmm judge`",
        ),
        (b'{"format": 99}', "format 99 is not known here (this reads format 1)"),
    ],
)
def test_what_is_no_result_is_one_line(text: bytes, problem: str) -> None:
    with pytest.raises(ResultError) as caught:
        parse_result(text, "the-file")
    assert str(caught.value).startswith("the-file: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pages_in_a_row_are_one_entry_only_if_the_host_pages_are_too() -> None:
    operations = tuple(
        SetUserMemoryRegion(slot, gfn << 12, 0x1000, Place("a", page << 12))
        for slot, (gfn, page) in enumerate(((0x10, 1), (0x11, 2), (0x12, 0)))
    )
    scenario = Scenario("split", operations, (Mapping("a", 3),))
    steps = judged(ideal_history(scenario)).steps
    reads = [tuple_of(each) for each in steps[3].met if each.access == "r"]
    assert (0, 0x10, 2, "r", "a", 1) in reads
    assert (0, 0x12, 1, "r", "a", 0) in reads
