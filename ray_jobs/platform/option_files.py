"""A user's own YAML file as an option of a group: `adapt=mine.yaml` stands where a preset's name would.

In: the words that choose options, and the folder of presets. Out: the file's settings, registered with Hydra under a
stand-in name while a configuration is composed, or a one-line `ValueError` that names the file.

A file is read as a preset of its group: `# @package _global_` on top places it at the top level, `defaults` begin with
other presets. What a preset says and a user would leave out is added: without `_target_` and `defaults` the file
changes the job's own option. The contents themselves may stand in the file's place, as text of several lines; so
`submit` sends them.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clipautt.commands import quoted
from ray_jobs.platform.nearest import nearest, suggestion
from ray_jobs.platform.schema import MISSING, TARGET, fields

SUFFIXES = (".yaml", ".yml")
_PROVIDER = "an option file"
_GLOBAL = "_global_"
_HEADER = re.compile(r"#\s*@package\s+(\S+)\s*")
_PART_OF = {"sweep": "space"}
"""Group → the mapping that its file may hold right away: a search space without the key `space`."""
_DIMENSION = {"low", "high", "step", "log", "choices"}
"""Keys of a dimension of a search space, which is given as a whole: choices may take the place of a preset's range."""
_LONGEST = 1_000_000


@dataclass(frozen=True)
class OptionFile:
    """A file that stands for an option of a group."""

    group: str
    """The group, as in `conf/<group>/`."""
    word: str
    """The word that names it, for messages: `adapt=mine.yaml`."""
    text: str
    """Its contents."""
    content: Mapping[str, Any]
    """Its settings, with dotted keys made nested ones."""
    package: str | None
    """Where its header places it, `_global_` at the top level; None: as the group's presets."""
    path: Path | None = None
    """The file; None if the contents were given themselves."""
    name: str = ""
    """Stand-in for an option's name, while it is registered."""

    @property
    def inline(self) -> str:
        """A word that holds the contents, for a machine that does not have the file."""
        text = self.text if "\n" in self.text else f"{self.text}\n"
        return f"{self.word.partition('=')[0]}={quoted(text)}"


def names_file(value: Any, options: Sequence[str]) -> bool:
    """Whether the value of a word that chooses an option is a file, or the contents of one."""
    if not isinstance(value, str) or value in options:
        return False
    return "\n" in value or value.lower().endswith(SUFFIXES)


def read_option(key: str, value: str, options: Sequence[str]) -> OptionFile:
    """Read a file, or its contents.

    Args:
        key: the group.
        value: path of the file, relative to the working directory, or its contents.
        options: names of the group's presets.

    Raises:
        ValueError: there is no such file, or it holds no settings.
    """
    if "\n" in value:
        word, text, path = f"{key}=…", value.replace("\\${", "${"), None
    else:
        word, path = f"{key}={value}", Path(value).expanduser()
        text = _text(path, word, options)
    header = [match[1] for line in _head(text) if (match := _HEADER.fullmatch(line))]
    return OptionFile(key, word, text, _content(text, word), header[0] if header else None, path)


def _text(path: Path, word: str, options: Sequence[str]) -> str:
    if path.is_dir():
        raise ValueError(f"{word}: a folder, not a file")
    if not path.is_file():
        near = nearest(path.name, [*options, *(other.name for other in _beside(path))])
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"{word}: no such file; {hint}options: {', '.join(options)}, or your own YAML file")
    if path.stat().st_size > _LONGEST:
        raise ValueError(f"{word}: {path.stat().st_size} bytes; a file of settings has at most {_LONGEST}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{word}: line {line} is not UTF-8; save the file as UTF-8") from None


def _beside(path: Path) -> list[Path]:
    """The YAML files of the folder that a missing file would be in."""
    folder = path.parent
    return [other for suffix in SUFFIXES for other in sorted(folder.glob(f"*{suffix}"))] if folder.is_dir() else []


def _head(text: str) -> Iterator[str]:
    """The comment lines at the top."""
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            return
        yield line.strip()


def _content(text: str, word: str) -> dict[str, Any]:
    try:
        loaded = OmegaConf.load(io.StringIO(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{word}: {where}{getattr(error, 'problem', None) or error}") from None
    except (OmegaConfBaseException, OSError) as error:  # OSError: neither a mapping nor a list
        raise ValueError(f"{word}: {str(error).splitlines()[0]}") from None
    content = OmegaConf.to_container(loaded, resolve=False)
    if not content or not isinstance(content, dict) or _is_bare_text(text):
        raise ValueError(f"{word}: expected settings, one per line as `key: value`")
    return _nested(content, word)


def _is_bare_text(text: str) -> bool:
    """Whether YAML sees a single text, of which OmegaConf makes a key without a value."""
    return isinstance(yaml.compose(text, Loader=yaml.SafeLoader), yaml.ScalarNode)


def _nested(content: Mapping[Any, Any], word: str) -> dict[str, Any]:
    """The settings with `a.b: 1` as `a: {b: 1}`."""
    result: dict[str, Any] = {}
    for name, value in content.items():
        if not isinstance(name, str):
            reason = ", as YAML reads on, yes and true alike" if isinstance(name, bool) else ""
            raise ValueError(f"{word}: the key {name!r} is not text{reason}; write it in quotes")
        value = _nested(value, word) if isinstance(value, Mapping) else value
        first, *others = name.split(".")
        for part in reversed(others):
            value = {part: value}
        _join(result, first, value, word)
    return result


def _join(tree: dict[str, Any], name: str, value: Any, word: str) -> None:
    if name not in tree:
        tree[name] = value
    elif isinstance(tree[name], dict) and isinstance(value, Mapping):
        for inner, one in value.items():
            _join(tree[name], inner, one, word)
    else:
        raise ValueError(f"{word}: {name!r} is given twice")


def placed(file: OptionFile, folder: Path, cfg: DictConfig, chosen: str | None, number: int) -> OptionFile:
    """A file as a complete preset: in the package it belongs to, on the basis that it leaves out.

    Args:
        file: as it was read.
        folder: the folder of all groups.
        cfg: the job's settings without the file.
        chosen: the group's option in them.
        number: of the file among all words, for its stand-in name.
    """
    presets = _presets(folder, file.group)
    everywhere = all(any(_HEADER.fullmatch(line) for line in _head(text)) for text, _ in presets)
    content, package = dict(file.content), file.package
    if package is None and everywhere:
        package = _GLOBAL
        content = _with_part(content, _PART_OF.get(file.group), cfg)
    elif package is None and set(content) == {file.group} and isinstance(content[file.group], Mapping):
        content = dict(content[file.group])  # as a run's config.yaml has it
    if not everywhere and package in (None, "_group_", _GLOBAL) and not {TARGET, "defaults"} & set(content):
        node = cfg.get(file.group)
        targets = {settings.get(TARGET) for _, settings in presets}
        if isinstance(node, DictConfig) and TARGET in node and chosen is not None:
            place = f"@{_GLOBAL}.{file.group}" if package == _GLOBAL else ""
            content = {"defaults": [f"{chosen}{place}", "_self_"], **content}
        elif package != _GLOBAL and len(targets) == 1 and None not in targets:
            content = {TARGET: targets.pop(), **content}
    return replace(file, content=content, package=package, name=f"own_file_{number}")


def _presets(folder: Path, group: str) -> list[tuple[str, dict[Any, Any]]]:
    """Text and settings of a group's presets."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((folder / group).glob("*.yaml"))]
    loaded = [OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False) for text in texts]
    return [(text, one if isinstance(one, dict) else {}) for text, one in zip(texts, loaded, strict=True)]


def _with_part(content: dict[str, Any], part: str | None, cfg: DictConfig) -> dict[str, Any]:
    """The settings with those that are known only inside one mapping put there: dimensions into `space`."""
    if part is None or part in content:
        return content
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    inner = [
        name
        for name, value in content.items()
        if (_has_dimension(value) or any(_unknown({name: value}, tree, tree)))
        and not any(_unknown({name: value}, tree[part], tree[part]))
    ]
    moved = {name: content[name] for name in inner}
    return {**{name: value for name, value in content.items() if name not in moved}, **({part: moved} if moved else {})}


def _has_dimension(value: Any) -> bool:
    """Whether a value is a dimension of a search space, or holds one; a setting without a default does not tell."""
    if not isinstance(value, Mapping):
        return False
    return _is_dimension(value) or any(map(_has_dimension, value.values()))


def _is_dimension(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and set(value) <= _DIMENSION


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Forget, at the end, the files that were given to Hydra with `register`."""
    try:
        yield
    finally:
        repo = ConfigStore.instance().repo
        for group, options in [(group, options) for group, options in repo.items() if isinstance(options, dict)]:
            kept = {name: node for name, node in options.items() if getattr(node, "provider", "") != _PROVIDER}
            repo[group] = kept
            if not kept:
                del repo[group]


def register(file: OptionFile) -> None:
    """Let Hydra find a file under its stand-in name."""
    ConfigStore.instance().store(
        group=file.group, name=file.name, node=dict(file.content), package=file.package, provider=_PROVIDER
    )


@contextlib.contextmanager
def named(files: Sequence[OptionFile]) -> Iterator[None]:
    """Name the files in the errors of Hydra, which knows them by their stand-ins."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        for file in files:
            text = text.replace(f"{file.group}/{file.name}", file.word.partition("=")[2])
        raise ValueError(text) from None


def check(file: OptionFile, cfg: DictConfig, before: DictConfig, folder: Path) -> None:
    """Refuse settings of a file that nothing reads.

    Args:
        file: as it was registered.
        cfg: the composed settings.
        before: the job's settings without the file.
        folder: the folder of all groups.

    Raises:
        ValueError: naming the file, the key and the nearest one that there is.
    """
    made, there = (OmegaConf.to_container(node, resolve=False) for node in (cfg, before))
    content = {name: value for name, value in file.content.items() if name != "defaults"}
    package = file.group if file.package in (None, "_group_") else str(file.package)
    if package != _GLOBAL:
        for part in reversed(package.split(".")):
            content = {part: content}
    assert isinstance(made, dict) and isinstance(there, dict)
    for _, settings in _presets(folder, file.group) if package == _GLOBAL else ():
        there = {**settings, **there}
    problems = dict(_unknown(content, made, there))
    for key, problem in problems.items():
        unknown = tuple(name for name, other in problems.items() if not other)
        names = [name for name in {*_leaves(made), *_leaves(there)} if not f"{name}.".startswith(_with_dots(unknown))]
        raise ValueError(f"{file.word}: {problem or f'unknown key {key!r}{suggestion(key, names)}'}")


def _with_dots(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def _leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if name != TARGET:
            yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")


def _unknown(content: Mapping[str, Any], made: Any, there: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Keys that no setting has, and what is wrong with a value of another kind than its default.

    Args:
        content: settings of a file.
        made: the composed settings at the same place, which say of which class they are.
        there: the settings without the file at the same place.
        prefix: where this is.
    """
    target = content.get(TARGET, made.get(TARGET) if isinstance(made, Mapping) else None)
    known = fields(str(target)) if target else there if isinstance(there, Mapping) else None
    for name, value in content.items():
        key = f"{prefix}{name}"
        if name == TARGET or known is None or (target and not known):
            continue
        if name not in known:
            yield key, ""
            continue
        inside = made.get(name) if isinstance(made, Mapping) else None
        usual = there.get(name) if isinstance(there, Mapping) else None
        default = known[name].default if target and usual is None else usual
        if _is_dimension(default):
            continue  # the job checks it
        of_class = any(isinstance(one, Mapping) and TARGET in one for one in (value, inside, default))
        if isinstance(value, Mapping) and (isinstance(default, Mapping) or of_class):
            yield from _unknown(value, inside, default, f"{key}.")
        elif problem := _other_kind(key, value, default):
            yield key, problem


def _other_kind(key: str, value: Any, default: Any) -> str:
    """What is wrong with a value where the default is of another kind; empty if nothing, or if nothing tells."""
    if default in (None, MISSING) or value is None or (isinstance(value, str) and "${" in value):
        return ""
    if isinstance(value, Mapping):
        return f"{key} holds settings, where a value as {default!r} belongs"
    if isinstance(default, Mapping):
        return f"{key}={value!r}: holds several settings: {', '.join(_leaves(default))}"
    if isinstance(default, bool) and not isinstance(value, bool):
        return f"{key}={value!r}: expected true or false"
    return ""
