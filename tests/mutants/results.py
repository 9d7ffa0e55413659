"""Keeps what became of each bug, in the cache."""

import hashlib
import threading
from pathlib import Path

import msgspec

from tests.mutants.found import Found
from tests.mutants.rows import Mutant
from vmm.lab.cache import cache_folder

_LOCK = threading.Lock()

Costs = dict[str, float | None]
"""How many seconds a scenario took on the good kernel; None where it did not pass there."""


def key(row: Mutant, white: bool) -> str:
    """Return what a result is kept under: it changes with what the bug is."""
    what = (row.edit, row.npt, row.params) if row.params else (row.edit, row.npt)
    digest = hashlib.sha256(msgspec.json.encode(what)).hexdigest()[:12]
    return f"{row.name} {digest}{' white' * white}"


def _file(name: str) -> Path:
    folder = cache_folder() / "mutants"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def read(version: str) -> dict[str, Found]:
    """Return the results of a version."""
    path = _file(f"results-{version}.json")
    if not path.exists():
        return {}
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Found])


def keep(version: str, name: str, found: Found) -> None:
    """Keep a result."""
    with _LOCK:
        known = {**read(version), name: found}
        path = _file(f"results-{version}.json")
        scratch = path.with_suffix(".new")
        scratch.write_bytes(msgspec.json.format(msgspec.json.encode(known)))
        scratch.rename(path)


def costs(version: str, npt: int) -> Costs:
    """Return what scenarios cost on the good kernel."""
    path = _file(f"costs-{version}-npt{npt}.json")
    return msgspec.json.decode(path.read_bytes(), type=Costs) if path.exists() else {}


def keep_costs(version: str, npt: int, costs: Costs) -> None:
    """Keep how long scenarios took."""
    _file(f"costs-{version}-npt{npt}.json").write_bytes(msgspec.json.encode(costs))
