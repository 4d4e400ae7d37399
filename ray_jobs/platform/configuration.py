"""Settings of the jobs: finds the YAML files, composes them with the user's `key=value` words, explains what is wrong.

In: the name of a job and the words of a command line. Out: complete settings; keys that no file names have the default
of the class that their `_target_` names. `instantiate` turns a node with a `_target_` into the frozen dataclass that
lives beside the code it configures, and no code below a job's `main` sees a `DictConfig`. Hydra composes on the driver;
workers get plain values.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from clipautt.commands import looks_otherwise, quoted, setting
from clipautt.commands import word as shell_word
from ray_jobs.platform.nearest import nearest, suggestion
from ray_jobs.platform.objects import build
from ray_jobs.platform.schema import MISSING, TARGET, Field, fields, filled

VERSION_BASE = "1.3"
_FROM_ELSEWHERE = ("hf-hub:", "local-dir:")
_WORD = re.compile(r"(?P<key>[+~]{0,2}[A-Za-z_][\w./@:-]*)=(?P<value>.*)", re.DOTALL)
_ITEM = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^][{},'"]+""")
"""A quoted or bare item of a list in Hydra's grammar."""


@dataclass(frozen=True)
class Source:
    """One YAML file that took part in a composition."""

    path: Path
    """The file."""
    package: str
    """Dotted key under which its settings are placed; empty for the top level."""


@dataclass(frozen=True)
class Composition:
    """A composed configuration and where it came from, for the command line's help."""

    cfg: DictConfig
    """The settings in struct mode; mandatory values may still be `???`."""
    choices: dict[str, str | None]
    """Group → chosen option, for every group the job takes."""
    options: dict[str, tuple[str, ...]]
    """Group → every option there is."""
    sources: tuple[Source, ...]
    """The YAML files, in the order in which they were merged."""


def checkout() -> Path | None:
    """The source checkout that this code runs from; None where a wheel is installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else None


@dataclass(frozen=True)
class _Layer:
    """Settings with some of the user's words applied, and group → option chosen so far."""

    cfg: DictConfig
    choices: dict[str, str | None]


def folder() -> Path:
    """The folder of the YAML files: in a wheel inside the package, in a source checkout beside it.

    Raises:
        FileNotFoundError: Neither exists.
    """
    here = Path(__file__).resolve().parents[1]
    for candidate in (here / "conf", here.parent / "conf"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"no conf folder in {here} or {here.parent}: the installation is incomplete")


def configured_jobs() -> tuple[str, ...]:
    """Names of the jobs that have a primary configuration, sorted."""
    return tuple(sorted(path.stem for path in folder().glob("*.yaml")))


def compose(job: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The settings of a job.

    Args:
        job: Name of a primary configuration, `conf/<job>.yaml`.
        overrides: The user's words, `key=value` or `group=option`, in Hydra's grammar.

    Returns:
        The composed settings in struct mode: reading an unknown key raises. Mandatory values may still be missing,
        which `complete`, `instantiate` and `resolved` refuse.

    Raises:
        ValueError: A word cannot be parsed, names an unknown key or option, or has a value of the wrong type.
    """
    with _hydra() as loader:
        return _composed(loader, job, overrides)[0].cfg


def compose_with_sources(job: str, overrides: Sequence[str] = ()) -> Composition:
    """Like `compose`, with the groups, options and files that the settings came from."""
    with _hydra() as loader:
        layer, words = _composed(loader, job, overrides)
        files = loader.compute_defaults_list(job, words, RunMode.RUN).defaults
        return Composition(
            cfg=layer.cfg,
            choices=layer.choices,
            options={group: tuple(loader.get_group_options(_bare(group))) for group in layer.choices},
            sources=tuple(
                Source(folder() / f"{file.config_path}.yaml", file.package or "")
                for file in files
                if file.config_path and not file.config_path.startswith("hydra")
            ),
        )


def complete(job: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Like `compose`, but refuses settings that lack a mandatory value.

    Raises:
        ValueError: As in `compose`, or a value is missing.
    """
    cfg = compose(job, overrides)
    missing = sorted(
        key for key, value in flatten(OmegaConf.to_container(cfg, resolve=False)).items() if value == MISSING
    )
    if missing:
        raise ValueError(_missing(*missing))
    return cfg


def instantiate(node: Any) -> Any:
    """Build the objects that a node of the configuration describes.

    A mapping with `_target_` becomes an object of that class, which checks its values; see `objects`.

    Args:
        node: A node of a composed configuration, or plain containers.

    Returns:
        The object; mappings and lists without a `_target_` become plain dicts and lists of such objects.

    Raises:
        ValueError: A setting is unknown, missing, of the wrong type, or refused by its class.
    """
    key = str(node._get_full_key(None) or "") if OmegaConf.is_config(node) else ""
    return build(_plain(node), key)


def resolved(cfg: Any) -> dict[str, Any]:
    """The settings as plain containers, with interpolations replaced by their values.

    Raises:
        ValueError: A mandatory value is missing.
    """
    plain = _plain(cfg)
    if not isinstance(plain, dict):
        raise ValueError(f"cfg={plain!r}: expected a mapping")
    return plain


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key → leaf value; an empty mapping is a leaf."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree} if prefix else {}
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return leaves


def _plain(node: Any) -> Any:
    if not OmegaConf.is_config(node):
        return node
    with _plain_errors():
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)


@contextlib.contextmanager
def _hydra() -> Iterator[ConfigLoader]:
    GlobalHydra.instance().clear()  # Hydra refuses to start twice, for instance in a notebook.
    with initialize_config_dir(config_dir=str(folder()), version_base=VERSION_BASE, job_name="clipautt"):
        yield GlobalHydra.instance().config_loader()


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn every error of Hydra or OmegaConf into a one-line `ValueError`."""
    try:
        yield
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        if "Missing mandatory value" in str(error):
            raise ValueError(_missing(str(key))) from None
        raise ValueError(_first_line(error)) from None
    except HydraException as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        raise ValueError(_first_line(cause)) from None


def _missing(*keys: str) -> str:
    verb, them = ("has", "it") if len(keys) == 1 else ("have", "them")
    return f"{', '.join(keys)} {verb} no value; set {them} with {' '.join(f'{key}=…' for key in keys)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _composed(loader: ConfigLoader, job: str, overrides: Sequence[str]) -> tuple[_Layer, list[str]]:
    """The settings, and the words among the overrides that choose options of groups."""
    if job not in configured_jobs():
        raise ValueError(f"no configuration for {job!r}{suggestion(job, configured_jobs())}")
    with _plain_errors():
        parsed = [_parse(word) for given in overrides for word in _spelled_out(given)]
        groups = [word for word in parsed if loader.get_group_options(word.key_or_group)]
        defaults = _load(job, [])
        for word in groups:
            _check_choice(loader, job, defaults, word)
        chosen = [_text(word).lstrip("+") for word in groups]
        base = _load(job, chosen) if chosen else defaults
        cfg = base.cfg.copy()
        for word in parsed:
            if word not in groups:
                _apply(cfg, base, word)
        return _Layer(_filled(cfg), base.choices), chosen


def _filled(cfg: DictConfig) -> DictConfig:
    """The settings in struct mode, with the defaults of the classes that they name filled in."""
    whole = OmegaConf.create(filled(OmegaConf.to_container(cfg, resolve=False)))
    OmegaConf.set_struct(whole, True)
    return whole


def _spelled_out(word: str) -> list[str]:
    """The word, or for `backbone=NAME` with an open_clip model the two words that it is short for."""
    group, _, name = word.partition("=")
    if group != "backbone" or not (name.startswith(_FROM_ELSEWHERE) or name in _open_clip_models()):
        return [word]
    return ["backbone=open_clip", f"backbone.name={quoted(name)}"]


@cache
def _open_clip_models() -> frozenset[str]:
    """Names of the models that open_clip knows, found without importing it."""
    spec = importlib.util.find_spec("open_clip")
    folders = spec.submodule_search_locations if spec else None
    return frozenset(path.stem for folder in folders or [] for path in Path(folder, "model_configs").glob("*.json"))


def _parse(word: str) -> Override:
    parser = OverridesParser.create()
    match = _WORD.fullmatch(word)
    if match is None and not word.startswith("~"):
        raise ValueError(f"cannot read {word!r}: a setting is written key=value")
    try:
        override = parser.parse_override(word)
    except HydraException as error:
        # A path may contain characters that Hydra's grammar reserves, but does not begin like a list, mapping or
        # quotation. Letters with accents are reserved too, also in the items of a list.
        accents = match is not None and match["value"].startswith("[") and not word.isascii()
        if match is None or (match["value"].startswith(("[", "{", "'", '"')) and not accents):
            raise ValueError(f"cannot read {word!r}: {_first_line(error)}") from None
        value = _ITEM.sub(_quoted_accents, match["value"]) if accents else quoted(match["value"])
        try:
            override = parser.parse_override(f"{match['key']}={value}")
        except HydraException:
            raise ValueError(f"cannot read {word!r}: {_first_line(error)}") from None
    if override.is_sweep_override():
        key = override.key_or_group
        raise ValueError(
            f"{word!r} gives {key} several values: give one; a list is written {key}=[a,b], one text with a comma "
            f"{setting(key, word.partition('=')[2])}"
        )
    return override


def _quoted_accents(item: re.Match[str]) -> str:
    return item[0] if item[0].isascii() or item[0].startswith(("'", '"')) else quoted(item[0].strip())


def _text(word: Override) -> str:
    assert word.input_line is not None
    return word.input_line


def _check_choice(loader: ConfigLoader, job: str, defaults: _Layer, word: Override) -> None:
    group, option = word.key_or_group, word.value()
    options = loader.get_group_options(group)
    taken = {_bare(name) for name in defaults.choices}
    if group not in taken:
        raise ValueError(f"{job!r} takes no group {group!r}; its groups: {', '.join(sorted(taken)) or 'none'}")
    if option is not None and option not in options and not word.is_delete():
        near = nearest(str(option), [*options, *(_open_clip_models() if group == "backbone" else ())])
        hint = f"; did you mean {near!r}?" if near else ";"
        raise ValueError(f"unknown option {group}={option}{hint} options: {', '.join(options)}")


def _apply(cfg: DictConfig, base: _Layer, word: Override) -> None:
    """Change the setting that a word names, after checking that it exists and the value has its type.

    `+key` and `++key` mean the same as `key`, as the settings hold every possible key; `~key` removes a key, which
    leaves a field at its class's default.
    """
    key = word.key_or_group
    leaves = flatten(OmegaConf.to_container(base.cfg, resolve=False))
    settable = [leaf for leaf in leaves if leaf.rpartition(".")[2] != TARGET]
    inside = [leaf for leaf in settable if leaf.startswith(f"{key}.")]
    if key not in leaves and not inside:
        owners = _options_with(key, base.choices)
        hint = f"; it belongs to {', '.join(owners)}" if owners else suggestion(key, {*settable, *base.choices})
        raise ValueError(f"unknown key {key!r}{hint}")
    if word.is_delete():
        _remove(cfg, word)
    elif inside and not isinstance(word.value(), Mapping) and not (word.value() is None and _is_flat(base.cfg, key)):
        raise ValueError(f"{key!r} holds several settings; set one of {', '.join(inside)}")
    else:
        with open_dict(cfg):
            OmegaConf.update(cfg, key, _checked(base.cfg, word, key), merge=not _is_flat(cfg, key))


def _is_flat(cfg: DictConfig, key: str) -> bool:
    """Whether a key holds a mapping of plain values: a range or choices of a search, which are given as a whole."""
    node = _default(cfg, key)
    return isinstance(node, DictConfig) and TARGET not in node and not any(map(OmegaConf.is_dict, node.values()))


def _options_with(key: str, groups: Iterable[str]) -> list[str]:
    """The options of a job's groups that bring this top-level setting."""
    found = []
    for group in dict.fromkeys(map(_bare, groups)):
        for path in sorted((folder() / group).glob("*.yaml")):
            if path.read_text().startswith("# @package _global_") and key in flatten(
                OmegaConf.to_container(OmegaConf.load(path))
            ):
                found.append(f"{group}={path.stem}")
    return found


def _remove(cfg: DictConfig, word: Override) -> None:
    parent, name = _parent(cfg, word.key_or_group), word.key_or_group.rpartition(".")[2]
    if name not in parent:
        return
    if word.value() is not None and word.value() != parent._get_node(name):
        raise ValueError(f"{_text(word)}: not removed, as the value is {parent._get_node(name)}")
    with open_dict(parent):
        del parent[name]


def _checked(cfg: DictConfig, word: Override, key: str) -> Any:
    """The value of a word, in the type of its field, or of its default if it fills no field."""
    field = _field(cfg, key)
    if field is None:
        return _parse(_checked_kind(word, _default(cfg, key))).value()
    return _parse(_kept_as_text(word, field)).value()


def _field(cfg: DictConfig, key: str) -> Field | None:
    """The field that a key fills; None if it belongs to no `_target_`."""
    parent = _parent(cfg, key)
    target = parent.get(TARGET) if isinstance(parent, DictConfig) else None
    return None if target is None else fields(str(target)).get(key.rpartition(".")[2])


def _parent(cfg: DictConfig, key: str) -> Any:
    return OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg


def _kept_as_text(word: Override, field: Field) -> str:
    """The word, quoted if it looks like a number or a truth value where text is expected: 8_1 is a name and not 81."""
    is_list = isinstance(word.value(), list)
    text = field.lists_text if is_list else field.takes_text and word.value() is not None
    return _as_text(word) if text else _text(word)


def _as_text(word: Override) -> str:
    """The word with its value, or each item of its list, as text: `[FALSE,007]` as `['FALSE','007']`."""
    key, _, value = _text(word).partition("=")
    return f"{key}={_ITEM.sub(_quoted_item, value)}"


def _quoted_item(item: re.Match[str]) -> str:
    return quoted(item[0].strip()) if looks_otherwise(item[0].strip()) else item[0]


def _refuse_doubtful(word: Override) -> None:
    """Refuse an unusually written number where nothing tells whether text is meant."""
    key, _, written = _text(word).partition("=")
    value = word.value()
    if isinstance(value, int | float) and not isinstance(value, bool) and str(value) != written.strip():
        ways = " or ".join(shell_word(f"{key}={way}") for way in (quoted(written), value))
        raise ValueError(f"{_text(word)}: is it text or a number? Write {ways}")


def _default(cfg: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:  # An interpolation of something that the user has yet to set.
        return None


def _checked_kind(word: Override, default: Any) -> str:
    key, value = word.key_or_group, word.value()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if default is None:
        _refuse_doubtful(word)
    if default is None and isinstance(value, bool):  # no setting without a default is true or false
        return _as_text(word)
    if default is None or value is None or (isinstance(value, str) and "${" in value):
        return _text(word)
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ValueError(f"{_text(word)}: expected true or false, as in the default {key}={str(default).lower()}")
    if isinstance(default, int | float) and not isinstance(default, bool) and not is_number:
        raise ValueError(f"{_text(word)}: expected a number, as in the default {key}={default}")
    if isinstance(default, ListConfig) and not isinstance(value, list):
        raise ValueError(f"{_text(word)}: expected a list, written {key}=[a,b]")
    names = isinstance(default, ListConfig) and all(isinstance(item, str) for item in default)
    if names or (isinstance(default, str) and (is_number or isinstance(value, bool | list))):
        return _as_text(word)  # A name, a subject or a class may look like a number.
    return _text(word)


def _load(job: str, words: Sequence[str]) -> _Layer:
    """The settings as composed from the files, with defaults filled in."""
    cfg = hydra_compose(config_name=job, overrides=list(words), return_hydra_config=True)
    choices = {str(group): option for group, option in cfg.hydra.runtime.choices.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    return _Layer(_filled(cfg), {group: option for group, option in choices.items() if not group.startswith("hydra/")})


def _bare(group: str) -> str:
    """A group without the package it is placed in: `dataset` for `dataset@source`."""
    return group.partition("@")[0]
