"""The command line's help: a job's settings with defaults, explanations and allowed values.

In: the source of the jobs and of the settings classes, and the YAML files. Out: text. None of these sources is
imported, so that help is quick and needs no torch.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from ray_jobs.platform import configuration
from ray_jobs.platform.jobs import Job
from ray_jobs.platform.schema import MISSING, TARGET, Field, fields

_COMMENT_COLUMN = 44
_WIDTH = 118


@dataclass(frozen=True)
class Setting:
    """One setting of a job."""

    key: str
    """Dotted key."""
    value: str
    """The default, as written on the command line."""
    about: str
    """What it does; empty if undocumented."""


def help_text(job: Job, overrides: Iterable[str] = ()) -> str:
    """What `clipautt <job> --help` prints: docstring, groups, and all settings with the overrides applied."""
    if job.reads_words or job.module not in configuration.configured_jobs():
        return job.doc.strip()
    first = "".join(f" {name.upper()}" for name in job.positional.split())
    composition = configuration.compose_with_sources(job.module, list(overrides))
    return "\n".join(
        [
            job.doc.strip(),
            "",
            f"Usage: clipautt {job.name}{first} key=value …",
            *_group_lines(composition),
            *_setting_lines(composition),
        ]
    )


def comments(path: Path) -> dict[str, str]:
    """The comments of a YAML file on its settings.

    Returns:
        Dotted key → the comment at the end of its line, or else the comment lines right above it. The empty key has
        the comment lines at the top of the file.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    top = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
    result = {"": _block_above(lines, top)}
    for key, name, value in _pairs(yaml.compose(text, Loader=yaml.SafeLoader), ""):
        row = name.start_mark.line
        behind = _behind(lines, name.end_mark.line, name.end_mark.column + 1) if _is_block(name, value) else ""
        behind = behind or _behind(lines, value.end_mark.line, value.end_mark.column)
        result[key] = behind or ("" if row == top else _block_above(lines, row))
    return {key: comment for key, comment in result.items() if comment}


def _group_lines(composition: configuration.Composition) -> list[str]:
    lines = []
    for group, options in composition.options.items():
        for option in options:
            path = configuration.folder() / group.partition("@")[0] / f"{option}.yaml"
            about = comments(path).get("", "") if path.is_file() else ""
            chosen = "(chosen) " if option == composition.choices[group] else ""
            lines.append(_entry(f"{group}={option}", chosen + about))
    return ["", "Choices, each a set of settings; your own is a file, as GROUP=FILE.yaml:", *lines] if lines else []


def settings(composition: configuration.Composition) -> list[Setting]:
    """Every setting of a composed configuration, the job's own before those of its groups.

    The explanation is the comment of the last YAML file that sets it; without one, the docstring of the field that it
    fills, or else the explanation of the mapping it belongs to. What the field allows follows.
    """
    tree = OmegaConf.to_container(composition.cfg, resolve=False)
    known = dict(_fields_in(tree))
    about = {key: _as_yaml(field.doc) for key, field in known.items()}
    for source in composition.sources:
        prefix = f"{source.package}." if source.package else ""
        about.update({prefix + key: comment for key, comment in comments(source.path).items() if key})
    listed = [
        Setting(key, _value(value), _told(about, key, known[key].allowed if key in known else ""))
        for key, value in configuration.flatten(tree).items()
        if key.rpartition(".")[2] != TARGET
    ]
    return sorted(listed, key=lambda setting: setting.key.partition(".")[0] in composition.choices)


def _told(about: Mapping[str, str], key: str, allowed: str) -> str:
    """The explanation of a setting, or of the mapping it belongs to, and what is allowed."""
    while key and not about.get(key):
        key = key.rpartition(".")[0]
    return " ".join(filter(None, [about.get(key), f"[{allowed}]" if allowed else ""]))


def _setting_lines(composition: configuration.Composition) -> list[str]:
    entries = [_entry(f"{setting.key}={setting.value}", setting.about) for setting in settings(composition)]
    return ["", "Settings and their defaults:", *entries]


def _entry(left: str, about: str) -> str:
    indent = " " * _COMMENT_COLUMN
    wrapped = textwrap.wrap(about, _WIDTH - _COMMENT_COLUMN)
    head = f"  {left}".ljust(_COMMENT_COLUMN - 1) + " "
    if not wrapped:
        return head.rstrip()
    if len(head) > _COMMENT_COLUMN:
        return "\n".join([head.rstrip(), *(indent + line for line in wrapped)])
    return "\n".join([head + wrapped[0], *(indent + line for line in wrapped[1:])])


def _value(value: Any) -> str:
    if value == MISSING:
        return "(required)"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _fields_in(tree: Any, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Dotted key and field, for every setting that fills a field of a class."""
    if isinstance(tree, Mapping):
        for name, field in fields(str(tree[TARGET])).items() if TARGET in tree else ():
            yield f"{prefix}{name}", field
        for name, child in tree.items():
            yield from _fields_in(child, f"{prefix}{name}.")


def _as_yaml(doc: str) -> str:
    """A docstring with None, True and False as they are written in YAML."""
    return re.sub(r"\b(None|True|False)\b", lambda word: {"None": "null"}.get(word[0], word[0].lower()), doc)


def _pairs(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        key = f"{prefix}{name.value}"
        yield key, name, value
        yield from _pairs(value, f"{key}.")


def _is_block(name: yaml.Node, value: yaml.Node) -> bool:
    return bool(value.start_mark.line != name.start_mark.line)


def _behind(lines: list[str], row: int, column: int) -> str:
    """The comment that follows a position on its line, if nothing lies between."""
    match = re.fullmatch(r"\s*#\s*(.*)", lines[row][column:]) if row < len(lines) else None
    return match[1].strip() if match else ""


def _block_above(lines: list[str], row: int) -> str:
    """The comment lines right above a line, joined, without Hydra's directives."""
    first = row
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    texts = [line.lstrip().lstrip("#").strip() for line in lines[first:row]]
    return " ".join(text for text in texts if text.strip("-= ") and not text.startswith("@package"))
