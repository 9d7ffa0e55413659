"""What goes wrong while a kernel's features are probed."""

import msgspec

from vmm.scenario.history import SetUpRefused


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """What went wrong at a ``step`` of the probe: a call was ``refused``, or the step broke off.

    ``reason`` says why it broke off: one of `vmm.scenario.endings`.
    """

    step: str
    refused: SetUpRefused | None = None
    reason: str = ""
