"""C statements for dirty logs and dirty rings."""

from vmm.repro.account import Account
from vmm.repro.cnames import pages, slot_pages, unsigned
from vmm.repro.expectations import Expectation
from vmm.scenario.history import DirtyPages, RingPages
from vmm.scenario.operations import ClearDirtyLog, EnableCap, GetDirtyLog, HarvestDirtyRing

RING_CAPS = ("DIRTY_LOG_RING", "DIRTY_LOG_RING_ACQ_REL")


def enable(account: Account, op: EnableCap, step: Expectation) -> list[str]:
    """Return the statement of KVM_ENABLE_CAP."""
    is_ring = op.cap in RING_CAPS
    account.use("enablering" if is_ring else "cap")
    function = "enable_ring" if is_ring else "enable_cap"
    call = f"{function}(KVM_CAP_{op.cap}, {unsigned(op.flags)}, {unsigned(op.argument)})"
    return [account.checked(call, step)]


def get_log(account: Account, op: GetDirtyLog, step: Expectation) -> list[str]:
    """Return the statements of KVM_GET_DIRTY_LOG."""
    account.use("dirty", "getdirty")
    account.name_slot(op.slot)
    bitmap = "dirty"
    if op.bitmap == "unwritable":
        account.use("nowhere")
        bitmap = "nowhere()"
    lines = [account.checked(f"get_dirty_log({unsigned(op.slot)}, {bitmap})", step)]
    logs = [each.outcome for each in step.allowed if isinstance(each.outcome, DirtyPages)]
    if logs:
        account.use("expectdirty")
        optional = {page for log in logs for page in (*log.pages, *log.perhaps)}
        sure = set.intersection(*(set(log.pages) for log in logs))
        maybe = tuple(sorted(optional - sure))
        # The slot determines how many words a log has, so all outcomes agree on it.
        words = logs[0].words
        if op.slot in account.left_logs:
            account.left_logs.discard(op.slot)
            account.use("raceleft")
            lines.append(f"expect_race_in_log({unsigned(op.slot)});")
        lines.append(f"expect_dirty({words}, {pages(tuple(sorted(sure)))}, {pages(maybe)});")
    return lines


def clear_log(account: Account, op: ClearDirtyLog, step: Expectation) -> list[str]:
    """Return the statements of KVM_CLEAR_DIRTY_LOG."""
    account.left_logs.discard(op.slot)
    account.use("dirty", "cleardirty", "markall" if op.pages == "all" else "mark")
    account.name_slot(op.slot)
    bitmap = "dirty"
    if op.bitmap == "unreadable":
        account.use("nowhere")
        bitmap = "nowhere()"
    if op.pages == "all":
        marks = "mark_all();"
    else:
        bits = tuple(page - op.first_page for page in op.pages)
        marks = f"mark({pages(bits)});"
    call = (
        f"clear_dirty_log({unsigned(op.slot)}, {unsigned(op.first_page)}, "
        f"{unsigned(op.num_pages)}, {bitmap})"
    )
    return [marks, account.checked(call, step)]


def harvest(account: Account, op: HarvestDirtyRing, step: Expectation) -> list[str]:
    """Return the statement that reads a vCPU's dirty ring."""
    account.use("harvest")
    lines = []
    for outcome in (each.outcome for each in step.allowed):
        assert isinstance(outcome, RingPages)
        may_be_full = "true" if outcome.may_be_full else "false"
        lines.append(
            f"expect_harvest({op.vcpu}, {slot_pages(outcome.pages)}, "
            f"{slot_pages(outcome.perhaps)}, {outcome.full}, {may_be_full});"
        )
    return lines
