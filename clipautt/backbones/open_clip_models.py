"""Backbones by name: open_clip's own models, repositories of the hub, and local folders in the hub's layout.

A name gives the architecture and the tokenizer; the weights come from a pretrained tag, the hub or a local file.
Preprocessing and activation belong to the weights: a tag or a repository states them. A file alone does not, so it is
recognized (by the `open_clip_config.json` beside it, by the name under which it is published, by OpenAI's format) or
gets what all tags of its model share. If those differ, or open_clip also has the model with the other activation,
`TAG:FILE` is needed: the file may be anyone's weights, with the preprocessing and activation of that tag.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.pretrained import list_pretrained_tags_by_model
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from clipautt.backbones.frozen_clip import Backbone, Precision
from clipautt.backbones.hub import CONFIG_FILE, FOREIGN, NO_WAIT, from_hub
from clipautt.backbones.names import FOLDER, HUB, SUFFIXES
from clipautt.backbones.publications import (
    QUICK,
    WEIGHT_FILES,
    Facts,
    all_tags,
    facts_of_tag,
    publication,
    split_repository,
)
from clipautt.backbones.registry import default_tag, is_inside, remember, verify
from clipautt.backbones.text_tower import refuse, why_no_context
from clipautt.backbones.weight_files import WeightFile, load_weights, read_weights
from clipautt.video.preprocessing import Preprocessing

_CROPS = {"shortest": "centre", "squash": "squash"}
_NOT_TOLD = frozenset({"timm_model_pretrained", "hf_model_pretrained", "hf_tokenizer_name", "tokenizer_kwargs"})
"""Keys that may differ between configurations of the same architecture: where weights and tokenizer are."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model that can be built."""

    name: str
    """Name in open_clip."""
    config: Mapping[str, Any]
    """open_clip's configuration: `embed_dim`, `vision_cfg`, `text_cfg` and more."""
    facts: Facts | None = None
    """Facts of the weights, if the name includes them."""

    @property
    def quick_gelu(self) -> bool:
        """Whether its activation is QuickGELU."""
        return bool(self.config.get("quick_gelu", False))


@dataclass(frozen=True)
class _Weights:
    """A file of weights, and what is known about it."""

    path: Path
    facts: Facts | None
    unknown: bool = False
    """Whether it lies in the registry, and no hash of it is known yet."""


def load_open_clip(name: str, weights: str | None = None, *, precision: Precision = "fp32") -> Backbone:
    """Load the backbone of a name, with its weights.

    Args:
        name: of an open_clip model, `hf-hub:org/repo`, or `local-dir:FOLDER` with a repository's files.
        weights: for an open_clip model: a pretrained tag, `hf-hub:org/repo`, a local file, or `TAG:FILE`.
        precision: see `BackboneConfig`.

    Raises:
        ValueError: for an unknown name or tag, a text tower that takes no context vectors, weights for
            another activation or architecture, and files that cannot be read or fetched.
        FileNotFoundError: if a local file or folder is not there.
    """
    arch = find_architecture(name)
    reason = refusal(arch.config)
    if reason:
        refuse(name, reason)
    where = _find_weights(arch, weights)
    tokenizer = load_tokenizer(arch)
    file = read_weights(where.path)
    facts = dict(where.facts or _facts_of_file(arch, file))
    if file.openai:
        facts["quick_gelu"] = True
    check_activation(arch, facts, weights=str(weights or name))
    preprocessing = preprocessing_of(arch, facts)
    model = build_model(arch)
    load_weights(model, file, name=arch.name)
    if where.unknown:
        remember(where.path, published="")
    return Backbone(model, name=name, preprocessing=preprocessing, precision=precision, tokenizer=tokenizer)


def supported_models() -> tuple[str, ...]:
    """The names of open_clip's own models that can be a backbone."""
    return tuple(name for name in open_clip.list_models() if refusal(open_clip.get_model_config(name)) is None)


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a model of this configuration takes no context vectors; None where it does. Nothing is built."""
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        return f"it is the Hugging Face model {text['hf_model_name']}"
    if "multimodal_cfg" in config:
        return "it belongs to a CoCa model, which adds a token of its own to every text"
    if config["vision_cfg"].get("output_tokens"):
        return "its image tower returns more than one feature"
    return why_no_context(
        pool=text.get("pool_type", "argmax"),
        causal=not text.get("no_causal_mask", False),
        adds_token=bool(text.get("embed_cls", False)),
    )


def find_architecture(name: str) -> Architecture:
    """The architecture that a name refers to.

    Raises:
        ValueError: for a name that open_clip does not know, or a repository that cannot be read.
        FileNotFoundError: if a local folder or its configuration is not there.
    """
    if name.startswith(FOLDER):
        path = Path(name.removeprefix(FOLDER)) / CONFIG_FILE
        if not path.is_file():
            raise FileNotFoundError(f"backbone.name {name!r}: there is no file {path}; {FOREIGN}")
        return _described(name, path)
    if name.startswith(HUB):
        return _described(name, from_hub(name.removeprefix(HUB), CONFIG_FILE, f"backbone.name {name!r}"))
    name = name.replace("/", "-")
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        hint = f"; similar names are {', '.join(near)}" if near else ""
        raise ValueError(f"backbone.name {name!r} is neither 'embedded' nor an open_clip model{hint}")
    return Architecture(name, open_clip.get_model_config(name))


def _described(name: str, path: Path) -> Architecture:
    content = _read_config(path)
    return Architecture(name, content["model_cfg"], _facts(content))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    config = content.get("model_cfg") if isinstance(content, dict) else None
    kinds = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(
            f"{path} does not describe an open_clip model: it needs model_cfg with embed_dim (a whole number), "
            "vision_cfg and text_cfg (mappings)"
        )
    if not isinstance(content.get("preprocess_cfg") or {}, dict):
        raise ValueError(f"{path}: preprocess_cfg={content['preprocess_cfg']!r} is not a mapping")
    return content


def _facts_beside(arch: Architecture, path: Path) -> Facts:
    """The facts in a configuration file beside weights for an architecture.

    Raises:
        ValueError: if it describes another architecture.
    """
    content = _read_config(path)
    ours, theirs = _architecture_facts(arch.config), _architecture_facts(content["model_cfg"])
    differ = [
        f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if differ:
        raise ValueError(
            f"backbone.weights: {path} describes another model than backbone.name {arch.name!r}: "
            f"{', '.join(differ[:3])}{' and more' if len(differ) > 3 else ''}; "
            "give the model that these weights belong to, or move them away from that file"
        )
    return _facts(content)


def _architecture_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says about an architecture, by dotted name, with open_clip's defaults filled in."""
    facts = {"embed_dim": config["embed_dim"]}
    for part, defaults in (("vision_cfg", CLIPVisionCfg()), ("text_cfg", CLIPTextCfg())):
        for key, value in {**asdict(defaults), **config[part]}.items():
            if key not in _NOT_TOLD:
                facts[f"{part}.{key}"] = list(value) if isinstance(value, tuple) else value
    size = facts["vision_cfg.image_size"]
    return {**facts, "vision_cfg.image_size": size if isinstance(size, list) else [size, size]}


def _facts(content: Mapping[str, Any]) -> Facts:
    """What a repository's configuration says about its weights."""
    quick_gelu = bool(content["model_cfg"].get("quick_gelu", False))
    return {**merge_preprocess_dict(PreprocessCfg(), content.get("preprocess_cfg") or {}), "quick_gelu": quick_gelu}


def _find_weights(arch: Architecture, weights: str | None) -> _Weights:
    """The file that a setting names; the activation is checked before anything is fetched."""
    if arch.facts is not None:
        if weights:
            raise ValueError(
                f"backbone.weights {weights!r}: backbone.name {arch.name!r} comes with its own weights; "
                "leave backbone.weights empty"
            )
        return _Weights(_own_weights(arch.name), arch.facts)
    if not weights:
        raise ValueError(
            f"backbone.weights is empty: {_ways(arch)}give {arch.name} a local file or a pretrained tag{_tags(arch)}"
        )
    if Path(weights).is_file():
        return _Weights(Path(weights), None)
    if weights.startswith(HUB):
        return _hub_weights(arch, weights)
    tag, _, file = weights.partition(":")
    facts = facts_of_tag(arch.name, tag)
    if not facts:
        raise _unknown_weights(arch, weights)
    check_activation(arch, facts, weights=weights)
    if not file:
        return _Weights(_tagged_weights(arch, tag, facts), facts)
    if not Path(file).is_file():
        raise FileNotFoundError(f"backbone.weights {weights!r}: there is no file {file}{_fetch(arch, tag)}")
    return _Weights(Path(file), facts, _is_unknown(arch, tag, Path(file)))


def _is_unknown(arch: Architecture, tag: str, path: Path) -> bool:
    """Verify a file of the registry; whether no hash of it is known yet.

    Raises:
        ValueError: if it is not the file that was published or registered.
    """
    if not is_inside(path, arch.name, tag):
        return False
    known = publication(arch.name, tag)
    try:
        return verify(path, published=known.sha256 if known else "") is None
    except ValueError as error:
        raise ValueError(f"backbone.weights: {error}{_fetch(arch, tag)}") from error


def _ways(arch: Architecture) -> str:
    """How the weights that a model gets without `backbone.weights` come to this machine."""
    usual, facts = publication(arch.name, default_tag(arch.name)), facts_of_tag(arch.name, default_tag(arch.name))
    if usual is None or facts is None or facts["quick_gelu"] != arch.quick_gelu:
        return ""
    return (
        f"`clipautt backbone fetch {usual.word}` gets them where the network allows; without one, put "
        f"{usual.file_name} from {usual.address} into {usual.folder}; or "
    )


def _fetch(arch: Architecture, tag: str) -> str:
    known = publication(arch.name, tag)
    return f"; `clipautt backbone fetch {known.word}` gets it, then {known.settings} finds it" if known else ""


def _own_weights(name: str) -> Path:
    """The weights of a repository or of a local folder."""
    if name.startswith(HUB):
        return from_hub(name.removeprefix(HUB), None, f"backbone.name {name!r}")
    folder = Path(name.removeprefix(FOLDER))
    known = [folder / file for file in WEIGHT_FILES if (folder / file).is_file()]
    others = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not known and len(others) != 1:
        there = f"several: {', '.join(path.name for path in others)}" if others else "none"
        raise FileNotFoundError(f"backbone.name {name!r} needs a file of weights, one of {WEIGHT_FILES}; found {there}")
    return (known or others)[0]


def _hub_weights(arch: Architecture, weights: str) -> _Weights:
    """Weights of a repository for a model that open_clip knows by name."""
    repository, file = split_repository(weights.removeprefix(HUB))
    facts = _facts_of_repository(arch, repository)
    if facts:
        check_activation(arch, facts, weights=weights)
    return _Weights(from_hub(repository, file, f"backbone.weights {weights!r}", give="backbone.weights=FILE"), facts)


def _tagged_weights(arch: Architecture, tag: str, facts: Facts) -> Path:
    repository, file = split_repository(facts["hf_hub"])
    return from_hub(repository, file, f"backbone.weights {tag!r}", give=f"backbone.weights={tag}:FILE")


def _unknown_weights(arch: Architecture, weights: str) -> Exception:
    if "/" in weights or Path(weights).suffix.lower() in SUFFIXES:
        return FileNotFoundError(f"backbone.weights: there is no file {weights}{_fetch(arch, default_tag(arch.name))}")
    return ValueError(
        f"backbone.weights {weights!r} is neither a file nor a pretrained tag of {arch.name}{_tags(arch)}"
    )


def _tags(arch: Architecture) -> str:
    tags = list_pretrained_tags_by_model(arch.name)
    return f"; its tags are {', '.join(tags)}" if tags else "; it has no tags"


def _facts_of_repository(arch: Architecture, repository: str) -> Facts | None:
    for facts in all_tags(arch.name).values():
        if split_repository(facts["hf_hub"])[0] == repository:
            return facts
    try:
        path = from_hub(repository, CONFIG_FILE, "backbone.weights")
    except ValueError:  # some repositories hold weights and nothing else
        return None
    return _facts_beside(arch, path)


def _facts_of_file(arch: Architecture, file: WeightFile) -> Facts:
    """What is known about a local file, or else what all tags of the model share."""
    beside = file.path.with_name(CONFIG_FILE)
    if beside.is_file():
        return _facts_beside(arch, beside)
    default: Facts = merge_preprocess_dict(PreprocessCfg(), {})
    if file.openai:
        return default
    for tag, facts in all_tags(arch.name).items():
        if Path(facts["url"]).name == file.path.name and tag != "openai":  # OpenAI's file names are too common
            return facts
    _refuse_unknown_activation(arch, file)
    tagged = [facts_of_tag(arch.name, tag) or {} for tag in list_pretrained_tags_by_model(arch.name)]
    shared: list[Facts] = [merge_preprocess_dict(PreprocessCfg(), dict(facts)) for facts in tagged] or [default]
    if any(facts != shared[0] for facts in shared):
        raise ValueError(
            f"backbone.weights: {file.path} does not state its preprocessing, which differs between the tags of "
            f"{arch.name}; give backbone.weights=TAG:FILE with the tag whose preprocessing it has{_tags(arch)}"
        )
    return shared[0]


def _refuse_unknown_activation(arch: Architecture, file: WeightFile) -> None:
    """Refuse a file of unknown activation for a model that open_clip has with either one: shapes do not tell which.

    Raises:
        ValueError: if the model has such a sibling.
    """
    other = _sibling(arch)
    if other is None:
        return
    tags: dict[bool, list[str]] = {True: [], False: []}
    for tag, facts in all_tags(arch.name).items():
        tags[bool(facts["quick_gelu"])].append(tag)
    listed = [
        f"those with {kind} are {', '.join(tags[q])}" for q, kind in ((True, "QuickGELU"), (False, "GELU")) if tags[q]
    ]
    use = (
        f"give backbone.weights=TAG:FILE with a tag that has the file's activation; {'; '.join(listed)}; or "
        if listed
        else ""
    )
    raise ValueError(
        f"backbone.weights: {file.path} does not state its activation, the only difference between {arch.name} and "
        f"{other}; {use}put the {CONFIG_FILE} of its training beside it"
    )


def _sibling(arch: Architecture) -> str | None:
    """The same model with the other activation, where open_clip has it."""
    other = arch.name.removesuffix(QUICK) if arch.quick_gelu else arch.name + QUICK
    return other if other != arch.name and other in open_clip.list_models() else None


def check_activation(arch: Architecture, facts: Facts, *, weights: str) -> None:
    """Compare the activation of a model with that of its weights, which the tensors do not show.

    Raises:
        ValueError: if one is QuickGELU and the other is not.
    """
    quick = facts.get("quick_gelu", arch.quick_gelu)
    if quick == arch.quick_gelu:
        return
    kinds = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
    other = _sibling(arch)
    use = f"; use backbone.name={other}" if other else ""
    raise ValueError(
        f"backbone.weights {weights!r} were trained with {kinds[0]}; backbone.name {arch.name!r} has {kinds[1]}{use}"
    )


def preprocessing_of(arch: Architecture, facts: Facts) -> Preprocessing:
    """How frames become the input of a model with these weights.

    Raises:
        ValueError: for inputs that are not square, or a way of resizing that would add a border.
    """
    size = arch.config["vision_cfg"].get("image_size", 224)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise ValueError(f"backbone.name {arch.name!r} takes frames of {list(size)} pixels; allowed: square ones")
    mode, interpolation = facts["resize_mode"], facts["interpolation"]
    if mode not in _CROPS:
        raise ValueError(f"backbone.name {arch.name!r} resizes by {mode!r}; allowed: {', '.join(_CROPS)}")
    return Preprocessing(
        int(sides.pop()),
        _channels(facts["mean"]),
        _channels(facts["std"]),
        "bilinear" if interpolation == "bilinear" else "bicubic",  # `random` is bicubic outside training
        "centre" if mode == "shortest" else "squash",
    )


def _channels(value: Any) -> tuple[float, float, float]:
    red, green, blue = value if isinstance(value, list | tuple) else (value,) * 3
    return float(red), float(green), float(blue)


def build_model(arch: Architecture) -> CLIP | CustomTextCLIP:
    """The model of an architecture with random weights; the caller's random state is unchanged.

    Raises:
        ValueError: for a configuration that the installed open_clip or timm does not know.
    """
    config = deepcopy(dict(arch.config))
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"]["timm_model_pretrained"] = False  # or other pretrained weights would be fetched
    try:
        with torch.random.fork_rng(devices=[]):
            model: CLIP | CustomTextCLIP = kind(**config)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"backbone.name {arch.name!r} cannot be built by the installed open_clip: {error}") from error
    return model


def load_tokenizer(arch: Architecture) -> Any:
    """The tokenizer of an architecture; CLIP's own comes with open_clip, others from the hub or a local folder.

    Raises:
        ValueError: if it cannot be read; the message says how to provide it.
    """
    source = arch.config["text_cfg"].get("hf_tokenizer_name")
    try:
        return open_clip.get_tokenizer(arch.name)
    except ImportError as error:
        raise ValueError(
            f"backbone.name {arch.name!r}: its tokenizer {source} needs pip install transformers sentencepiece"
        ) from error
    except Exception as error:  # transformers raises many types
        local = arch.name.startswith(FOLDER)
        place = f"in {arch.name.removeprefix(FOLDER)}" if local else "in the cache of the hub, and could not be fetched"
        raise ValueError(
            f"backbone.name {arch.name!r}: the tokenizer {source} is not {place}; on a machine with internet run "
            f"`hf download {source}` and copy {'its files there' if local else 'the cache, with HF_HOME set to it'}. "
            f"{NO_WAIT}"
        ) from error
