"""`Closing`: what every resource shares that a ``with`` block closes at its end."""

from types import TracebackType
from typing import Self


class Closing:
    """Has a ``close`` that gives back what it holds."""

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
            # What went wrong first says more than what cannot be closed because of it.
            error.add_note(f"not closed either: {refusal}")

    def close(self) -> None:
        """Give it back."""
        raise NotImplementedError
