import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmm.lab.errors import LabError
from vmm.lab.monitor import Monitor


@contextmanager
def emulator(*answers: object) -> Iterator[tuple[Monitor, list[str]]]:
    """Yield a monitor of something that gives these answers, and what it is asked."""
    ours, theirs = socket.socketpair()
    asked: list[str] = []

    def answer() -> None:
        with theirs.makefile("rwb") as lines:
            for each in ({"QMP": {}}, *answers):
                lines.write(json.dumps(each).encode() + b"\n")
                lines.flush()
            asked.extend(json.loads(line)["execute"] for line in lines)

    thread = threading.Thread(target=answer)
    with ours, theirs:
        thread.start()
        try:
            yield Monitor(ours), asked
        finally:
            theirs.shutdown(socket.SHUT_RD)
            thread.join()


def untouched() -> None:
    raise AssertionError("the machine has no state to be copied")


def test_a_machine_goes_on_once_its_state_is_written() -> None:
    yes: dict[str, object] = {"return": {}}
    meanwhile: list[str] = []
    written = [{"return": {"status": each}} for each in ("setup", "active", "completed")]
    with emulator(yes, yes, yes, {"event": "MIGRATION"}, yes, *written, yes) as (monitor, asked):
        monitor.keep(Path("/a b/state"), lambda: meanwhile.append("copied"))
    assert meanwhile == ["copied"]
    begin = ["qmp_capabilities", "migrate-set-capabilities", "migrate-set-parameters", "migrate"]
    assert asked[:4] == begin
    assert asked[-2:] == ["query-migrate", "cont"]


def test_a_state_that_cannot_be_written_is_an_error() -> None:
    yes: dict[str, object] = {"return": {}}
    failed = {"return": {"status": "failed", "error-desc": "no space left"}}
    with (
        emulator(yes, yes, yes, yes, failed) as (monitor, _),
        pytest.raises(LabError, match="no space left"),
    ):
        monitor.keep(Path("/state"), untouched)


def test_what_takes_too_long_is_broken_off_before_the_machine_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vmm.lab.monitor._KEEP_S", -1.0)
    yes: dict[str, object] = {"return": {}}
    first, *rest = ({"return": {"status": each}} for each in ("active", "cancelling", "cancelled"))
    with (
        emulator(yes, yes, yes, yes, first, yes, *rest, yes) as (monitor, asked),
        pytest.raises(LabError, match="takes too long"),
    ):
        monitor.keep(Path("/state"), untouched)
    assert asked.count("migrate_cancel") == 1
    assert asked[-3:] == ["query-migrate", "query-migrate", "cont"]


def test_what_the_emulator_refuses_is_named() -> None:
    refused = {"error": {"class": "GenericError", "desc": "migration is disabled"}}
    with (
        emulator(*[{"return": {}}] * 3, refused) as (monitor, _),
        pytest.raises(LabError, match="migrate: migration is disabled"),
    ):
        monitor.keep(Path("/state"), untouched)


def test_an_emulator_that_has_ended_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(LabError, match="QEMU"):
        Monitor(ours).keep(Path("/state"), untouched)


def test_a_machine_is_restored_without_its_memory() -> None:
    yes: dict[str, object] = {"return": {}}
    with emulator(yes, yes, yes) as (monitor, asked):
        monitor.restore(Path("/a b/devices"))
    assert asked == ["qmp_capabilities", "migrate-set-capabilities", "migrate-incoming"]
