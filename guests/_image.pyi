"""The compiled contract; ``guests`` gives it types."""

from typing import Any

ffi: Any
lib: Any
