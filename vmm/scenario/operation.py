"""What every operation is."""

import msgspec


class Operation(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", omit_defaults=True
):
    """What all operations share: the ``op`` field that tells them apart in JSON."""
