"""The error of the white box."""


class CannotLookError(Exception):
    """The kernel's memory, or its layout, is not available: one line, with a remedy.

    ``in_brief`` says which of them it is, for somebody who did not ask for a look.
    """

    def __init__(self, why: str, in_brief: str = "") -> None:
        super().__init__(why)
        self.in_brief = in_brief or why
