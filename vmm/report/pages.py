"""The page templates: each becomes one self-contained file."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


def rendered(template: str, **values: object) -> str:
    """Return a page made from a template in ``page/``; all values are escaped.

    Lone surrogates, which files can hold but UTF-8 cannot encode, are escaped, too.
    """
    text = _templates().get_template(template).render(**values)
    return text.encode("utf-8", "backslashreplace").decode()


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("vmm.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
