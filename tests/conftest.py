"""Shared by all tests: hypothesis is deterministic, and skipped tests say why."""

import gc
import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from tests.turns import turn
from vmm.kvm.system import Kvm

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

# As seldom as the program does: collecting garbage took a tenth of the time of the unit tests.
gc.set_threshold(100_000)

# A shell starts what runs in the background, and nohup everything, with signals ignored. Tests
# of what signals do want the usual actions, which the programs that they start inherit.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)

_TESTS = Path(__file__).parent
_NEED_KVM = {_TESTS / name: os.environ.get("TEST_TURN", name) for name in ("kvm", "lab")}


@cache
def why_no_kvm() -> str | None:
    """Return why /dev/kvm cannot be used here, or None."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"needs KVM: {error}"
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs the tests which take too long for CI."""
    parser.addoption("--long", action="store_true", help="run the tests marked long, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip long tests unless they are asked for, one by one or by ``--long``."""
    if config.getoption("--long") or any("::" in each for each in config.args):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long: ./scripts/test --long runs it"))


def _folder_of(item: pytest.Item) -> str | None:
    return next((_NEED_KVM[each] for each in item.path.parents if each in _NEED_KVM), None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a test that needs KVM wait for its turn."""
    folder = _folder_of(item)
    if folder is None:
        return (yield)
    with turn(folder, item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs KVM if there is none, or fail it if KVM is required."""
    if _folder_of(item) is None:
        return
    reason = why_no_kvm()
    if reason is None:
        return
    if os.environ.get("VMM_REQUIRE_KVM"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    """The KVM of this host."""
    with Kvm.open() as device:
        yield device
