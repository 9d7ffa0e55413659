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
        self.close()

    def close(self) -> None:
        """Give it back."""
        raise NotImplementedError
