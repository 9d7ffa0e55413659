"""`Closing`: the base of resources that a ``with`` block closes."""

from types import TracebackType
from typing import Self


class Closing:
    """A context manager that calls ``close`` at the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as refusal:
            # The first error says more than a close that fails because of it.
            error.add_note(f"not closed either: {refusal}")

    def close(self) -> None:
        """Release the resource."""
        raise NotImplementedError
