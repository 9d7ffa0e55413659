"""What goes wrong while a kernel is asked what it can do."""

import msgspec

from vmm.scenario.history import SetUpRefused


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """What went wrong at which ``step``: a call was ``refused``, or it ended for a ``reason``.

    Reasons are those of `vmm.scenario.endings`.
    """

    step: str
    refused: SetUpRefused | None = None
    reason: str = ""
