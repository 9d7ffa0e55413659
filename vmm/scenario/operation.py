"""The base of all operations."""

from typing import Annotated, Literal

import msgspec

HEXADECIMAL = "hexadecimal"

Hex = Annotated[int, msgspec.Meta(extra={HEXADECIMAL: True})]
"""A number that files hold in hexadecimal, such as a gpa, a size or flags."""

AsId = Literal[0, 1]


class Operation(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag_field="op",
    omit_defaults=True,
    kw_only=True,
):
    """What all operations share: the ``op`` field that tells them apart in JSON.

    ``expect`` is what the author of a scenario expects a call to answer: "success" or the name of
    an errno. It decides nothing about the kernel; a different answer is reported.

    >>> from vmm import operations
    >>> operations.SetUserMemoryRegion(slot=7, expect="EINVAL").expect
    'EINVAL'
    """

    expect: str = ""
