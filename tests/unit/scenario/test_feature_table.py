"""Each feature is one row of a table, and every place that has to know one does."""

import ast
import inspect
from collections.abc import Iterator

import msgspec
import pytest

from kvm_abi.uapi import Cap
from vmm.execution.probe import features as probe
from vmm.repro.account import Account
from vmm.repro.cnames import CNames
from vmm.repro.requirements import requirements
from vmm.scenario.features import (
    NEEDS,
    ROWS,
    TABLE,
    Feature,
    Features,
    PerVm,
    answered,
    by_capability,
    check_features,
)
from vmm.scenario.operations import Scenario
from vmm.scenario.problem import ScenarioError
from vmm.verdict.ideal import EVERYTHING

FIELDS = {*Features.__struct_fields__} - {"protected"}
NOT_ASKED_FOR = {"la57"}
MAPPED = {"zero_page", "hugetlb_pages", "collapse", "ksm", "userfaultfd", "pfnmap", "process_files"}
"""A C program needs no statement for them: it says so where it cannot map or see its memory."""


def tried() -> set[str]:
    """Return the fields that the probe's source gives a value to."""
    tree = ast.parse(inspect.getsource(probe))
    return {
        keyword.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg is not None
    }


def is_required(need: str) -> bool:
    scenario = Scenario("needy", (), needs=(need,), survey="none")
    try:
        return need in MAPPED or bool(list(requirements(scenario, EVERYTHING, Account(CNames(())))))
    except (KeyError, AssertionError):
        return False


def lacking() -> Iterator[str]:
    """Yield each place that lacks a feature, with the feature."""
    asked = {name for name, _ in by_capability(Features)} | tried() | NOT_ASKED_FOR
    yield from (f"TABLE: {name}" for name in sorted(FIELDS - ROWS.keys()))
    yield from (f"execution/probe: {name}" for name in sorted(FIELDS - asked))
    per_vm = {name for name, _ in by_capability(PerVm)}
    yield from (
        f"execution/probe of a VM: {name}" for name in PerVm.__struct_fields__ if name not in per_vm
    )
    yield from (f"verdict/ideal: {name}" for name in NEEDS if EVERYTHING.missing((name,)))
    yield from (f"repro/requirements: {name}" for name in NEEDS if not is_required(name))


def test_every_place_knows_every_feature() -> None:
    assert list(lacking()) == []
    assert len(ROWS) == len(TABLE)
    assert all(name in FIELDS or isinstance(getattr(Features, name), property) for name in ROWS)


def test_numbers_have_a_range_and_the_rest_is_true_or_false() -> None:
    for field in (*msgspec.structs.fields(Features), *msgspec.structs.fields(PerVm)):
        if field.name not in FIELDS:
            continue
        assert (ROWS[field.name].within is None) == (field.type is bool), field.name
        within = ROWS[field.name].within
        assert within is None or field.default in within


@pytest.mark.parametrize("row", [row for row in TABLE if row.within is not None])
def test_a_number_outside_its_range_is_refused_by_name(row: Feature) -> None:
    assert row.within is not None
    for value in (row.within.start - 1, row.within.stop):
        changed = msgspec.structs.replace(Features(), **{row.name: value})
        with pytest.raises(ScenarioError, match=rf"^\$\.features\.{row.name}: "):
            check_features(changed)


def test_capabilities_are_taken_as_the_kernel_answers_them() -> None:
    answers = {Cap.NR_MEMSLOTS: 509, Cap.MANUAL_DIRTY_LOG_PROTECT2: 1, Cap.DISABLE_QUIRKS2: 0x83}
    found = answered(lambda cap: answers.get(cap, 0), Features)
    assert (found.nr_memslots, found.quirks, found.slot_zap_all_quirk) == (509, 0x83, True)
    assert (found.manual_dirty_log, found.dirty_log_initially_set) == (True, False)
    assert (found.readonly_mem, found.irqchip, found.sync_mmu) == (False, False, False)
    assert answered(lambda cap: 0xC, PerVm).memory_attributes == 0xC
