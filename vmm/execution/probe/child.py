"""Probes the kernel in a child process, so that a kernel that refuses, hangs or lies is noticed.

Only a capability of 0, or a missing device, means that the host lacks something. Everything else
that goes wrong here would go wrong in every scenario, too.
"""

import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import msgspec

from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import Cap
from vmm.execution.callers import CallerDiedError, set_up_refused
from vmm.execution.probe.features import probe_features
from vmm.execution.probe.reach import ReachError
from vmm.execution.runner import too_late
from vmm.host.child import Child
from vmm.host.pauses import LOOK_EVERY_S, Pauses
from vmm.kvm.system import Kvm
from vmm.scenario.endings import DIED, is_short, of_the_host, why_failed
from vmm.scenario.features import Features
from vmm.scenario.slots import LEAST_SLOTS
from vmm.scenario.trouble import Trouble

TIME_LIMIT_S = 20.0


class Probed(msgspec.Struct, frozen=True, tag="probed"):
    """What a kernel can do. ``capabilities`` are the answers of KVM_CHECK_EXTENSION by name."""

    capabilities: dict[str, int]
    features: Features


class _Begun(msgspec.Struct, frozen=True, tag="begun"):
    """A step of the probe has begun."""

    step: str


_Message = Probed | Trouble | _Begun
_DECODER = msgspec.json.Decoder(_Message)


def probe(time_limit_s: float = TIME_LIMIT_S) -> Probed | Trouble:
    """Return what the kernel of this host can do, or what went wrong in the probe."""
    step = "a process is forked"
    try:
        child = Child.start(lambda to: _ask(to, time_limit_s / 2), explain=why_failed)
    except OSError as error:
        if not is_short(error):
            raise
        return Trouble(step, reason=of_the_host(error))
    pauses = Pauses()
    deadline = time.monotonic() + time_limit_s
    try:
        while True:
            while not child.answered(LOOK_EVERY_S):
                pauses.look(child.is_stopped)
                over = deadline + pauses.seconds <= time.monotonic()
                if (over or pauses.stopped_s > time_limit_s) and not child.answered(0):
                    return Trouble(step, reason=too_late(child, pauses, time_limit_s))
            message: _Message = _DECODER.decode(child.connection.recv_bytes())
            if not isinstance(message, _Begun):
                return message
            step = message.step
    except (EOFError, ConnectionError):
        return Trouble(step, reason=child.end() or f"{DIED}exit status 0")
    finally:
        child.end()


def _ask(to: Connection, reach_limit_s: float) -> None:
    """Probe the kernel and send the result; the body of the child."""
    step = "/dev/kvm is opened"

    def send(message: _Message) -> None:
        to.send_bytes(msgspec.json.encode(message))

    def begin(text: str) -> None:
        nonlocal step
        step = text
        send(_Begun(text))

    try:
        send(_probed(begin, reach_limit_s))
    except (KvmError, WrongAnswerError) as error:
        send(Trouble(step, set_up_refused(error)))
    except ReachError as error:
        send(Trouble(step, error.refused, "" if error.refused else str(error)))
    except CallerDiedError as error:
        send(Trouble(step, reason=f"{DIED}{error}"))
    except Exception as error:
        send(Trouble(step, reason=why_failed(error)))


def _probed(begin: Callable[[str], None], reach_limit_s: float) -> Probed:
    begin("/dev/kvm is opened")
    with Kvm.open() as kvm:
        begin("a VM is made, and asked for its capabilities")
        with kvm.create_vm() as vm:
            capabilities = {cap.name: vm.check_extension(cap) for cap in Cap}
        if not capabilities[Cap.USER_MEMORY.name]:
            return Probed(capabilities, Features())
        if 0 < capabilities[Cap.NR_MEMSLOTS.name] < LEAST_SLOTS:
            return Probed(capabilities, Features(nr_memslots=capabilities[Cap.NR_MEMSLOTS.name]))
        return Probed(capabilities, probe_features(kvm, begin, reach_limit_s))
