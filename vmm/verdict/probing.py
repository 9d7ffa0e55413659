"""The verdict on a kernel that refuses, hangs or lies while its features are probed."""

import msgspec

from vmm.model.rule import documented
from vmm.scenario import outcomewords
from vmm.scenario.endings import HARNESS, HOST, KERNEL_SHORT
from vmm.scenario.history import Done
from vmm.scenario.operations import Scenario
from vmm.scenario.trouble import Trouble
from vmm.verdict.judge import Difference, Expected, Status, Verdict
from vmm.verdict.result import Checked

PROBING = Scenario(
    "probing", (), why="What a kernel can do is asked, and plain calls are tried, before anything."
)

PLAIN = documented(
    "plain-calls",
    "VMs, slots of one page, vCPUs and touches are not refused, and do what they say",
    "api.rst 4",
)


def troubled(trouble: Trouble) -> Checked:
    """Return the result of a kernel whose features could not be probed."""
    step, refused, reason = trouble.step, trouble.refused, trouble.reason
    verdict = Verdict(PROBING.name, Status.INCONCLUSIVE, f"{reason}; under way: {step}")
    if reason.startswith(HARNESS):
        verdict = msgspec.structs.replace(verdict, status=Status.INTERNAL_ERROR, reason=reason)
    if refused is not None:
        observed = outcomewords.outcome(refused, ())
        if refused.errno in KERNEL_SHORT:
            reason = f"{HOST}{observed}; under way: {step}"
            verdict = Verdict(PROBING.name, Status.INCONCLUSIVE, reason)
        else:
            success = outcomewords.outcome(Done(), ())
            rule = Expected(success, PLAIN.name, PLAIN.promise, PLAIN.basis, PLAIN.cite)
            difference = Difference(0, -1, step, (rule,), observed, ())
            verdict = Verdict(PROBING.name, Status.DIFFERS, difference=difference)
    return Checked(PROBING, verdict)
