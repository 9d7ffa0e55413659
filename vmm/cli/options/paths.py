"""The type of arguments that name files."""

from typing import Any

import click


class FilePath(click.Path):
    """A path that is not empty: as such it would name the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path. Fails for an empty one."""
        if value == "":
            self.fail("the name of the file is missing", param, ctx)
        return super().convert(value, param, ctx)
