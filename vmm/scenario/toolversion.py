"""The version of this program, as results and reports carry it."""

UNKNOWN = "unknown"


def tool_version() -> str:
    """Return the version; `UNKNOWN` if the package's metadata cannot be read."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("memslot-vmm")
    except (PackageNotFoundError, OSError):
        return UNKNOWN
