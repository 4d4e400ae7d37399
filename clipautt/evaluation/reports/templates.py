"""Fills in the templates of the reports; each can use the style sheet as `css`."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


def render(name: str, *, escape: bool, **values: object) -> str:
    """Fill in a template of this package.

    Args:
        name: file name of the template.
        escape: whether to escape values for HTML.
        values: a value for every name that the template uses.

    Raises:
        jinja2.UndefinedError: for a name without a value.
    """
    environment = Environment(autoescape=escape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    css = Markup(_resource("report.css"))  # our own file, not input
    return environment.from_string(_resource(name)).render(css=css, **values)


def _resource(name: str) -> str:
    return (files("clipautt.evaluation.reports") / name).read_text(encoding="utf-8")
