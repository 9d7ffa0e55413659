"""An extension of griffe, for mkdocs: examples in docstrings become blocks of code.

In Markdown `>>>` begins three quotations, one in another.
"""

import re
import textwrap
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^ *>>> .*\n?(?:^ *\S.*\n?)*", re.MULTILINE)


class Examples(griffe.Extension):  # type: ignore[misc]
    """Puts fences around each doctest."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Change the docstring of a module, a class, a function or an attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(example: re.Match[str]) -> str:
    return f"```pycon\n{textwrap.dedent(example[0]).rstrip()}\n```\n"
