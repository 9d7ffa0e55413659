"""Which faults of the wrong kernel the fuzzer finds, how soon, and whether the C program shows
them.

``scripts/fuzz-table`` runs it. Each fault gets a random seed, one process and a minute.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab.lab import HERE, Fault, environment, faults

HARD = (
    "third-move-leaves-alias",
    "lower-delete-loses-moved",
    "page-swapped-above-64-slots",
    "dirty-lost-after-flags-only",
    "create-lost-above-509-slots",
    "first-slot-replaced-after-10",
    "third-move-unmaps",
    "flags-only-third-unmaps",
    "move-after-delete-unmaps",
    "create-after-move-and-delete-lost",
    "delete-of-reused-id-leaves",
    "delete-of-moved-leaves",
    "freed-id-resurrects",
    "reused-id-old-page",
    "delete-highest-hides-next",
    "move-past-neighbour-mixes",
    "move-hides-last-page-below",
    "refused-move-unmaps-target",
    "late-refused-move-unmaps",
    "create-lost-after-refused-create",
    "move-lost-after-refusal",
    "dirty-lost-of-reused-id",
    "dirty-cleared-by-others",
    "dirty-reported-once",
    "delete-lost-every-5th",
    "move-onto-itself-page-lost",
    "second-move-aliases-low",
    "memfd-held-by-deleted-slot",
    "memfd-held-by-refused-slot",
    "memfd-closed-takes-slots",
    "ring-second-lost",
    "ring-reset-lost",
    "clear-to-the-end",
    "host-change-missed-last-page",
)
"""Faults that take three operations or more to show."""

NEW = (
    "accessed-bit-lost",
    "clock-in-two-places",
    "clock-logged-beside",
    "clock-of-another-vcpu",
    "clock-pause-hidden",
    "clock-pause-refused",
    "clock-stays-after-move",
    "clock-version-odd",
    "clock-writes-flags",
    "coalesced-value-wrong",
    "coalesced-write-lost",
    "compared-unequal-not-logged",
    "comparison-borrow-turned",
    "dirty-bit-lost",
    "drop-takes-the-next-page",
    "element-comparison-turned",
    "element-exit-elsewhere",
    "element-load-exit-swallowed",
    "eventfd-absent-accepted",
    "eventfd-bad-length-accepted",
    "eventfd-ignored",
    "fork-parts-the-guest",
    "fork-stops-the-log",
    "former-interrupt-table-used",
    "fresh-memory-missed",
    "interrupt-frame-lost",
    "log-of-a-running-vcpu-lacks-lowest",
    "log-of-every-vm",
    "mapped-anew-not-seen",
    "move-in-every-vm",
    "moved-back-not-seen",
    "old-place-kept-for-a-running-vcpu",
    "operand-pop-not-logged",
    "operand-push-keeps-the-pointer",
    "pair-exit-cut",
    "pair-high-half-lost",
    "pop-loads-nothing",
    "push-keeps-the-pointer",
    "read-logged",
    "readonly-update-logged",
    "refused-write-logged",
    "ring-reset-beside-a-vcpu-blinds",
    "search-flag-turned",
    "slot-in-every-vm",
    "state-control-altered",
    "state-not-logged",
    "string-not-logged",
    "table-not-logged",
    "tables-not-logged",
    "unmapped-page-mapped",
    "update-reaches-a-deleted-slot",
    "update-second-page-not-logged",
    "write-protection-missed",
    "xchg-keeps-its-register",
)
"""Randomly chosen faults of instructions, starts, clocks, devices, host memory, VMs and threads."""

FOUND_ALONE = HERE / "found_alone.json"
"""What ``--alone`` has found at least once: for each wrong kernel a seed, and how long it took."""

SECONDS = 60
_ALONE = (
    "import vmm.cli.fuzzing as fuzzing; fuzzing._bases = lambda plan, host: (); "
    "from vmm.cli.main import main; main()"
)
"""The command without curated scenarios: none is mutated."""

_MINIMISING_S = 120
_AFTER = re.compile(r"after ([0-9.]+) s\.$", re.MULTILINE)
_FOUND = re.compile(r"^found: (\S+) \(in (\d+ of \d+) runs", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Row:
    """The result for one wrong kernel; it was found after ``found_s``, of ``seconds`` in all."""

    fault: Fault
    seed: int
    found: bool = False
    found_s: float = 0.0
    seconds: float = 0.0
    operations: int = 0
    wrong: int = -1
    right: int = -1
    rate: str = ""

    @property
    def is_proven(self) -> bool:
        """Whether it was found and found again, and its C program tells the kernels apart."""
        shown = bool(self.rate) and not self.rate.startswith("0 ")
        return self.found and shown and (self.wrong, self.right) == (1, 0)

    @property
    def good(self) -> bool:
        """Whether the result is as expected."""
        return self.is_proven and self.operations <= self.fault.fewest + 2


def main(arguments: list[str]) -> int:
    """Print the table; return 1 if a row is not as expected."""
    known = {fault.name: fault for fault in faults()}
    alone = arguments[:1] == ["--alone"]
    arguments = arguments[alone:]
    chosen = {("--all",): tuple(known), ("--new",): NEW, (): HARD}
    names = chosen.get(tuple(arguments), tuple(arguments))
    print(f"{'wrong kernel':38} {'seed':>10} {'found':>6} {'in all':>6} {'ops':>4} {'least':>5} "
          f"{'C wrong':>7} {'right':>5}  runs")  # fmt: skip
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            row = hunt(known[name], Path(folder), alone)
        rows.append(row)
        if alone and row.is_proven:
            remember(row)
        print(f"{name:38} {row.seed:>10} {_seconds(row):>6} {row.seconds:>5.1f}s "
              f"{row.operations:>4} {row.fault.fewest:>5} {row.wrong:>7} {row.right:>5}  "
              f"{row.rate}{'' if row.good else '   <-'}", flush=True)  # fmt: skip
    good = sum(row.good for row in rows)
    print(f"{good} of {len(rows)} found, at most two operations longer than the fewest, and told "
          "by their C program")  # fmt: skip
    return 0 if good == len(rows) else 1


def hunt(fault: Fault, folder: Path, alone: bool = False) -> Row:
    """Run the fuzzer on one wrong kernel; if ``alone``, without curated scenarios."""
    seed = secrets.randbelow(1 << 32)
    start = time.monotonic()
    limits = ["--seconds", str(SECONDS), "--jobs", "1", "--findings", "1"]
    program = ("-c", _ALONE) if alone else ("-m", "vmm.cli")
    command = [sys.executable, *program, "fuzz", "--seed", str(seed), *limits]
    try:
        ran = subprocess.run(
            [*command, "--out", str(folder / "out")],
            env=environment(fault.name),
            capture_output=True,
            text=True,
            timeout=SECONDS + _MINIMISING_S,
            check=False,
        )
    except subprocess.TimeoutExpired:  # The other rows say more than this one.
        return Row(fault, seed, seconds=time.monotonic() - start)
    seconds = time.monotonic() - start
    match = _FOUND.search(ran.stdout)
    if ran.returncode != 1 or match is None:
        print(ran.stdout[-300:], ran.stderr[-600:], file=sys.stderr)
        return Row(fault, seed, seconds=seconds)
    finding = Path(match[1])
    operations = len(json.loads((finding / "scenario.json").read_text())["operations"])
    wrong, right = tell(finding / "repro.c", fault.name, folder)
    after = _AFTER.search((finding / "report.md").read_text())
    found_s = float(after[1]) if after else SECONDS
    return Row(fault, seed, True, found_s, seconds, operations, wrong, right, match[2])


def remember(row: Row) -> None:
    """Write to `FOUND_ALONE` that a wrong kernel was found."""
    known = json.loads(FOUND_ALONE.read_text()) if FOUND_ALONE.exists() else {}
    known[row.fault.name] = {
        "seed": row.seed,
        "seconds": row.found_s,
        "operations": row.operations,
    }
    FOUND_ALONE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def _seconds(row: Row) -> str:
    """Return how soon a wrong kernel was found."""
    return f"{row.found_s:.1f}s" if row.found else "NO"


def tell(source: Path, fault: str, folder: Path) -> tuple[int, int]:
    """Return the exit statuses of a C program with the fault and without."""
    program = folder / "repro"
    compiler = shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    statuses = [
        subprocess.run([program], env=env, stdout=subprocess.DEVNULL, timeout=20, check=False)
        for env in (environment(fault), dict(os.environ))
    ]
    return statuses[0].returncode, statuses[1].returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
