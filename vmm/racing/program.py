"""What a vCPU's program does in a window: both who runs it and who judges it ask here."""

import msgspec

from vmm.memslots.operations import Touch


def in_window(touch: Touch, number: int) -> Touch:
    """Return a touch as the window with this number makes it: each writes a value of its own."""
    if touch.access == "read":
        return touch
    return msgspec.structs.replace(touch, value=(touch.value + number) & 0xFFFF_FFFF)
