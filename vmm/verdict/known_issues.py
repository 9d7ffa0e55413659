"""What is known to be wrong somewhere, as data.

A known issue is an expected failure: it is shown as such, whether it still fails or passes now,
and it never stands for any other difference. Whether a host has it depends on what does the work
there, and never on a version.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from vmm.host.health import Problem
from vmm.verdict.judge import Status, Verdict

_WARNED = re.compile(r"the kernel is newly tainted \(W: [^;]*\)|warn_count went from \d+ to \d+")
"""What the counters say of a warning, next to its text in the kernel log."""


@dataclass(frozen=True, slots=True)
class KnownIssue:
    """A difference that is expected in some scenarios where the module ``vendor`` is in charge.

    With an empty ``vendor`` it is a mistake in KVM itself: any kernel may have it, and one that
    has not deserves no remark.

    ``rules`` are those that the kernel breaks there; ``what`` says what is wrong, and ``evidence``
    how that is known. ``log`` is a regular expression for a line of what the kernel may complain
    of meanwhile (empty: of nothing).
    """

    name: str
    vendor: str
    scenarios: frozenset[str]
    rules: frozenset[str]
    what: str
    evidence: str
    log: str = ""

    def is_seen_in(self, verdict: Verdict) -> bool:
        """Whether this, and nothing else, is what a scenario failed by."""
        found = verdict.difference
        return found is not None and {each.rule for each in found.expected} <= self.rules

    def unexplained(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        """Return the kernel's complaints that this issue does not account for."""
        if not self.log:
            return tuple(problems)
        told = [each for each in problems if each.excerpt]
        others = [each for each in told if not any(re.search(self.log, x) for x in each.excerpt)]
        if others:
            return tuple(problems)
        return tuple(
            each for each in problems if not each.excerpt and not _WARNED.fullmatch(each.what)
        )


KNOWN_ISSUES = (
    KnownIssue(
        name="pvm-dirty-ring-overrun",
        vendor="kvm_pvm",
        scenarios=frozenset(("ring-overrun-in-one-run", "ring-overrun-by-one-instruction")),
        rules=frozenset(("ring-exact",)),
        what="kvm_pvm emulates many instructions before it looks whether the dirty ring is full, "
        "so that what they write overruns the ring, and pages are lost",
        evidence="kvm_dirty_ring_push() warns once per boot that the ring is full, and overwrites "
        "its oldest entries; after 1024 writes by one string instruction to a ring of 256 entries "
        "every KVM_RUN is KVM_EXIT_DIRTY_RING_FULL, whatever is harvested and reset",
        log=r"WARNING: .*kvm_dirty_ring_push",
    ),
    KnownIssue(
        name="gmem-bind-signed-overflow",
        vendor="",
        scenarios=frozenset(("memfd-refuse-an-end-beyond-2-to-the-63",)),
        rules=frozenset(("guest-memfd-end",)),
        what="kvm_gmem_bind() adds offset and size as signed numbers: an end beyond 2^63 is "
        "negative, and passes for one within the file",
        evidence="Linux 6.18 binds 0x2000 bytes of a guest_memfd of that size at the offsets "
        "0x7fffffffffffe000 and 0x7ffffffffffff000; at 0x7fffffffffffd000, and at 2^63, it "
        "answers EINVAL; mended by eba85fee7fc6",
    ),
    KnownIssue(
        name="internal-slot-refused-mapping-left",
        vendor="",
        scenarios=frozenset(
            (
                "tss-onto-a-slot",
                "identity-map-onto-a-slot",
                "identity-map-and-tss-side-by-side",
                "apic-page-onto-a-slot",
            )
        ),
        rules=frozenset(("vm-gone",)),
        what="__x86_set_memory_region() maps memory before it makes the slot, and leaves it mapped "
        "in the process where the slot is refused: nothing knows of it any more",
        evidence="Linux 6.1 (kvm_intel, unrestricted_guest=0) leaves three pages behind for each "
        "KVM_SET_TSS_ADDR over a slot, Linux 7.3 (kvm_amd with AVIC) one page for a "
        "KVM_CREATE_VCPU whose APIC page has no room; both calls are EEXIST, as they ought to be",
    ),
    KnownIssue(
        name="initially-set-huge-page-border",
        vendor="",
        scenarios=frozenset(
            f"clear-into-a-huge-page-{kind}-initially-set" for kind in ("thp", "hugetlb")
        ),
        rules=frozenset(("dirty-exact",)),
        what="kvm_arch_mmu_enable_log_dirty_pt_masked() overlooks a second huge page of which it "
        "clears the first 4 KiB only: it stays writable, and what the guest writes there is lost",
        evidence="Linux 7.3 with kvm_amd.npt=0, and with npt=1 and kvm.eager_page_split=0 (which "
        "else hides it, where the TDP MMU is in use): ALIGN() rounds both addresses up, and the "
        "border that the first is rounded to is where the last one is; rounded down, none is lost",
    ),
    KnownIssue(
        name="private-memory-after-cached-mmio",
        vendor="",
        scenarios=frozenset(("private-after-cached-mmio",)),
        rules=frozenset(("private",)),
        what="kvm_mmu_page_fault() takes an access through an entry for MMIO, which may stand from "
        "before the slot, for one on shared memory: where the gpa is private by now the vCPU "
        "stops, though a guest_memfd backs it",
        evidence="Linux 7.3 (kvm_amd, nested paging) answers every KVM_RUN with EFAULT, and "
        "KVM_EXIT_MEMORY_FAULT with flags 0, when a guest reads private memory at a gpa that it "
        "read as MMIO before the slot was there; without that first read it reads the zeros of the "
        "guest_memfd (private-and-shared-memory)",
    ),
)
"""All known issues."""


def known_issue(scenario: str, host: dict[str, str]) -> KnownIssue | None:
    """Return the issue that a scenario is expected to fail by on a host.

    ``host`` is what a history says of it; its ``vendor`` is the module under /sys/module that does
    the work.
    """
    for issue in KNOWN_ISSUES:
        if scenario in issue.scenarios and issue.vendor in ("", host.get("vendor")):
            return issue
    return None


def weighed(verdict: Verdict, issue: KnownIssue | None) -> Verdict:
    """Return what a verdict means where an issue is known."""
    if issue is None:
        return verdict
    if verdict.status is Status.DIFFERS and issue.is_seen_in(verdict):
        reason = f"{issue.name}: {issue.what}"
        return msgspec.structs.replace(verdict, status=Status.KNOWN, reason=reason)
    if verdict.status is Status.PASSED and issue.vendor:
        reason = f"{issue.name} does not show any more"
        return msgspec.structs.replace(verdict, status=Status.PASSES_NOW, reason=reason)
    return verdict
