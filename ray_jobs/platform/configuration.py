"""Settings of the jobs: finds the YAML files, composes them with the user's `key=value` words, explains what is wrong.

In: the name of a job and the words of a command line. Out: complete settings; keys that no file names have the default
of the class that their `_target_` names. `instantiate` turns a node with a `_target_` into the frozen dataclass that
lives beside the code it configures, and no code below a job's `main` sees a `DictConfig`. Hydra composes on the driver;
workers get plain values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ray_jobs.platform import option_files
from ray_jobs.platform.nearest import nearest, suggestion
from ray_jobs.platform.objects import build
from ray_jobs.platform.overriding import (
    checked_kind,
    first_line,
    kept_as_text,
    open_clip_models,
    parse,
    spelled_out,
    text_of,
)
from ray_jobs.platform.schema import MISSING, TARGET, Field, fields, filled

VERSION_BASE = "1.3"


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


def inlined(overrides: Sequence[str]) -> list[str]:
    """The words, with the contents of a user's option files in place of their names: for another machine."""
    with _hydra() as loader:
        words = [parse(word) for given in overrides for word in spelled_out(given)]
        files = {text_of(word): _own_file(loader, word) for word in words}
        return [text_of(word) if file is None else file.inline for word in words for file in (files[text_of(word)],)]


def compose_with_sources(job: str, overrides: Sequence[str] = ()) -> Composition:
    """Like `compose`, with the groups, options and files that the settings came from."""
    with _hydra() as loader:
        layer, words, own = _composed(loader, job, overrides)
        files = loader.compute_defaults_list(job, words, RunMode.RUN).defaults
        paths = {f"{file.group}/{file.name}": file.path for file in own}
        names = {file.name: file.word.partition("=")[2] for file in own}
        taken = [file for file in files if file.config_path and not file.config_path.startswith("hydra")]
        found = [(paths.get(one.config_path, folder() / f"{one.config_path}.yaml"), one.package) for one in taken]
        return Composition(
            cfg=layer.cfg,
            choices={group: names.get(str(option), option) for group, option in layer.choices.items()},
            options={
                group: tuple(names.get(name, name) for name in loader.get_group_options(_bare(group)))
                for group in layer.choices
            },
            sources=tuple(Source(path, package or "") for path, package in found if path is not None),
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
    settings = initialize_config_dir(config_dir=str(folder()), version_base=VERSION_BASE, job_name="clipautt")
    with settings, option_files.registered():
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
        raise ValueError(first_line(error)) from None
    except HydraException as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        raise ValueError(first_line(cause)) from None


def _missing(*keys: str) -> str:
    verb, them = ("has", "it") if len(keys) == 1 else ("have", "them")
    return f"{', '.join(keys)} {verb} no value; set {them} with {' '.join(f'{key}=…' for key in keys)}"


def _composed(
    loader: ConfigLoader, job: str, overrides: Sequence[str]
) -> tuple[_Layer, list[str], list[option_files.OptionFile]]:
    """The settings, the words among the overrides that choose options of groups, and the user's own files."""
    if job not in configured_jobs():
        raise ValueError(f"no configuration for {job!r}{suggestion(job, configured_jobs())}")
    with _plain_errors():
        parsed = [parse(word) for given in overrides for word in spelled_out(given)]
        groups = [word for word in parsed if loader.get_group_options(word.key_or_group)]
        defaults = _load(job, [])
        chosen: list[str] = []
        own: list[option_files.OptionFile] = []
        for word in groups:
            _check_group(job, defaults, word)
            file = _own_file(loader, word)
            if file is None:
                _check_choice(loader, word)
                chosen.append(text_of(word).lstrip("+"))
                continue
            usual = defaults.choices.get(file.group)
            own.append(option_files.placed(file, folder(), defaults.cfg, usual, len(own)))
            chosen.append(f"{text_of(word).partition('=')[0].lstrip('+')}={own[-1].name}")
        for file in own:
            option_files.register(file)
        with option_files.named(own), _plain_errors():
            base = _load(job, chosen) if chosen else defaults
        for file in own:
            if file.name == base.choices.get(file.group):
                option_files.check(file, base.cfg, defaults.cfg, folder())
        cfg = base.cfg.copy()
        for word in parsed:
            if word not in groups:
                _apply(cfg, base, word)
        return _Layer(_filled(cfg), base.choices), chosen, own


def _own_file(loader: ConfigLoader, word: Override) -> option_files.OptionFile | None:
    """The user's own file that a word chooses as an option; None if it chooses none."""
    options = loader.get_group_options(word.key_or_group)
    if not options or word.is_delete() or not option_files.names_file(word.value(), options):
        return None
    return option_files.read_option(word.key_or_group, str(word.value()), options)


def _filled(cfg: DictConfig) -> DictConfig:
    """The settings in struct mode, with the defaults of the classes that they name filled in."""
    whole = OmegaConf.create(filled(OmegaConf.to_container(cfg, resolve=False)))
    OmegaConf.set_struct(whole, True)
    return whole


def _check_group(job: str, defaults: _Layer, word: Override) -> None:
    taken = {_bare(name) for name in defaults.choices}
    if word.key_or_group not in taken:
        raise ValueError(
            f"{job!r} takes no group {word.key_or_group!r}; its groups: {', '.join(sorted(taken)) or 'none'}"
        )


def _check_choice(loader: ConfigLoader, word: Override) -> None:
    group, option = word.key_or_group, word.value()
    options = loader.get_group_options(group)
    if option is not None and option not in options and not word.is_delete():
        near = nearest(str(option), [*options, *(open_clip_models() if group == "backbone" else ())])
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
        raise ValueError(f"{text_of(word)}: not removed, as the value is {parent._get_node(name)}")
    with open_dict(parent):
        del parent[name]


def _checked(cfg: DictConfig, word: Override, key: str) -> Any:
    """The value of a word, in the type of its field, or of its default if it fills no field."""
    field = _field(cfg, key)
    if field is None:
        return parse(checked_kind(word, _default(cfg, key))).value()
    return parse(kept_as_text(word, field)).value()


def _field(cfg: DictConfig, key: str) -> Field | None:
    """The field that a key fills; None if it belongs to no `_target_`."""
    parent = _parent(cfg, key)
    target = parent.get(TARGET) if isinstance(parent, DictConfig) else None
    return None if target is None else fields(str(target)).get(key.rpartition(".")[2])


def _parent(cfg: DictConfig, key: str) -> Any:
    return OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg


def _default(cfg: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:  # An interpolation of something that the user has yet to set.
        return None


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
