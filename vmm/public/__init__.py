"""Where each public name of the library is.

Not in `vmm/__init__.py`, which Python reads before this program can tell of a failure: compiled, it
takes less than a block of a disk, so that a full one takes it whole, or not at all.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvm_abi.raw import KvmError as KvmError, RegionsError as RegionsError
    from kvm_abi.uapi import (
        Cap as Cap,
        MemFlag as MemFlag,
        Protection as Protection,
        VmType as VmType,
    )
    from vmm.host.health import Problem as Problem
    from vmm.kvm import exits as exits
    from vmm.kvm.memory import HostAddress as HostAddress, HostMapping as HostMapping
    from vmm.kvm.regions import Region as Region, Regions as Regions
    from vmm.kvm.registers import Registers as Registers
    from vmm.kvm.rings import DirtyRing as DirtyRing
    from vmm.kvm.system import Kvm as Kvm
    from vmm.kvm.vcpu import Vcpu as Vcpu
    from vmm.kvm.vm import Vm as Vm
    from vmm.library.guest import AssemblerError as AssemblerError, assemble as assemble
    from vmm.library.scenarios import (
        curated_scenarios as curated_scenarios,
        describe as describe,
        features_here as features_here,
        record_scenario as record_scenario,
        run_scenario as run_scenario,
        why_not as why_not,
    )
    from vmm.model.rule import Rule as Rule
    from vmm.scenario import (
        history as history,
        kernelslots as kernelslots,
        operations as operations,
    )
    from vmm.scenario.features import Features as Features, PerVm as PerVm
    from vmm.scenario.history import History as History
    from vmm.scenario.operations import Mapping as Mapping, Place as Place, Scenario as Scenario
    from vmm.scenario.problem import ScenarioError as ScenarioError
    from vmm.verdict.identity import Identity as Identity
    from vmm.verdict.judge import (
        Difference as Difference,
        Expected as Expected,
        Status as Status,
        UnderWay as UnderWay,
        Verdict as Verdict,
        judge as judge,
    )
    from vmm.verdict.known.issue import KnownIssue as KnownIssue
    from vmm.verdict.refusals import RefusedCalls as RefusedCalls
    from vmm.verdict.result import Checked as Checked
    from vmm.verdict.steps import Met as Met, SlotShown as SlotShown, Step as Step

PLACES = {
    "AssemblerError": "vmm.library.guest",
    "Cap": "kvm_abi.uapi",
    "Checked": "vmm.verdict.result",
    "Difference": "vmm.verdict.judge",
    "DirtyRing": "vmm.kvm.rings",
    "Expected": "vmm.verdict.judge",
    "Features": "vmm.scenario.features",
    "History": "vmm.scenario.history",
    "HostAddress": "vmm.kvm.memory",
    "HostMapping": "vmm.kvm.memory",
    "Identity": "vmm.verdict.identity",
    "KnownIssue": "vmm.verdict.known.issue",
    "Kvm": "vmm.kvm.system",
    "KvmError": "kvm_abi.raw",
    "Mapping": "vmm.scenario.operations",
    "MemFlag": "kvm_abi.uapi",
    "Met": "vmm.verdict.steps",
    "PerVm": "vmm.scenario.features",
    "Place": "vmm.scenario.operations",
    "Problem": "vmm.host.health",
    "Protection": "kvm_abi.uapi",
    "RefusedCalls": "vmm.verdict.refusals",
    "Region": "vmm.kvm.regions",
    "Regions": "vmm.kvm.regions",
    "RegionsError": "kvm_abi.raw",
    "Registers": "vmm.kvm.registers",
    "Rule": "vmm.model.rule",
    "Scenario": "vmm.scenario.operations",
    "ScenarioError": "vmm.scenario.problem",
    "SlotShown": "vmm.verdict.steps",
    "Status": "vmm.verdict.judge",
    "Step": "vmm.verdict.steps",
    "UnderWay": "vmm.verdict.judge",
    "Vcpu": "vmm.kvm.vcpu",
    "Verdict": "vmm.verdict.judge",
    "Vm": "vmm.kvm.vm",
    "VmType": "kvm_abi.uapi",
    "assemble": "vmm.library.guest",
    "curated_scenarios": "vmm.library.scenarios",
    "describe": "vmm.library.scenarios",
    "exits": "vmm.kvm",
    "features_here": "vmm.library.scenarios",
    "history": "vmm.scenario",
    "judge": "vmm.verdict.judge",
    "kernelslots": "vmm.scenario",
    "operations": "vmm.scenario",
    "record_scenario": "vmm.library.scenarios",
    "run_scenario": "vmm.library.scenarios",
    "why_not": "vmm.library.scenarios",
}
"""Each public name, and the module that it is imported from when it is first used."""
