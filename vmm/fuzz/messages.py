"""Messages from workers and minimisers to the process that watches them."""

import traceback
from multiprocessing.connection import Connection

import msgspec

from vmm.scenario.endings import is_short, what_is_short
from vmm.scenario.operations import Scenario
from vmm.verdict.identity import Identity


class Message(msgspec.Struct, frozen=True, tag_field="is"):
    """The base of all messages."""


class Progress(Message, frozen=True, tag="progress"):
    """What was done since the last such message; ``covered`` counts items of ``Novelty``."""

    scenarios: int
    operations: int
    inconclusive: int
    known: int
    covered: dict[str, int]


class Fresh(Message, frozen=True, tag="fresh"):
    """A scenario covered something new."""

    scenario: Scenario


class Differs(Message, frozen=True, tag="differs"):
    """A scenario differed; ``before`` ran before it in the same process."""

    scenario: Scenario
    identity: Identity
    before: tuple[Scenario, ...] = ()


class Complains(Message, frozen=True, tag="complains"):
    """The kernel complained while a scenario ran."""

    scenario: Scenario
    headline: str
    lines: tuple[str, ...]


class Ended(Message, frozen=True, tag="ended"):
    """A worker has done its share of the budget."""


class Best(Message, frozen=True, tag="best"):
    """The smallest scenario so far that still differs the same way, after ``tries`` tries."""

    scenario: Scenario
    tries: int


class Minimised(Message, frozen=True, tag="minimised"):
    """The end of minimising: ``differed`` of ``runs`` runs of the result differed.

    ``unfinished`` says that time ended it.
    """

    scenario: Scenario
    identity: Identity
    tries: int
    differed: int
    runs: int
    unfinished: bool


class Failed(Message, frozen=True, tag="failed"):
    """A process cannot go on: ``reason`` is a traceback, or what the host ran out of."""

    reason: str
    is_host: bool = False
    scenario: Scenario | None = None


AnyMessage = Progress | Fresh | Differs | Complains | Ended | Best | Minimised | Failed

_DECODER = msgspec.json.Decoder(AnyMessage)
_ENCODER = msgspec.json.Encoder()


def failed(error: Exception, scenario: Scenario | None = None) -> Failed:
    """Return the message of a process that an error ends, which it met in ``scenario``."""
    if is_short(error):
        return Failed(what_is_short(error), is_host=True)
    return Failed("".join(traceback.format_exception(error)), scenario=scenario)


def send(to: Connection, message: AnyMessage) -> None:
    """Send a message; exit if nobody reads it any more."""
    try:
        to.send_bytes(_ENCODER.encode(message))
    except BrokenPipeError:
        raise SystemExit(0) from None


def receive(origin: Connection) -> AnyMessage:
    """Return the next message. Raises EOFError when the sender is gone."""
    try:
        message: AnyMessage = _DECODER.decode(origin.recv_bytes())
    except OSError:  # The sender was killed in the middle of a message.
        raise EOFError from None
    return message
