"""A setting has one default: what a YAML says is what its dataclass says, but for what a variant is there to change."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ray_jobs.platform import configuration, typed

MISSING = "yours to give"
"""In the place of `???`, which nothing else may refer to."""
CHANGED: dict[str, dict[str, Any]] = {
    "adapt/default.yaml": {"adapt.subject_baseline": "median"},
    "adapt/entropy.yaml": {"adapt.objective": "entropy"},
    "adapt/infomax.yaml": {"adapt.objective": "infomax"},
    "adapt/infomax_balanced.yaml": {
        "adapt.objective": "infomax",
        "adapt.readout": "peak_window",
        "adapt.balance_weight": 2.0,
    },
    "adapt/infomax_kl.yaml": {"adapt.objective": "infomax_kl"},
    "adapt/mean_windows.yaml": {"adapt.readout": "mean_windows"},
    "adapt/paper.yaml": {
        "adapt.objective": "entropy",
        "adapt.protocol": "per_video",
        "adapt.steps": 5,
        "adapt.learning_rate": 0.001,
        "adapt.learning_rate_unit": "absolute",
    },
    "adapt/peak_window.yaml": {"adapt.readout": "peak_window"},
    "adapt/whole_clip.yaml": {"adapt.readout": "whole_clip"},
    "adapt/zero_shot.yaml": {"adapt.method": "zero_shot"},
    "backbone/open_clip.yaml": {"backbone.name": MISSING},
    "cluster/local.yaml": {"cluster.address": "local"},
    "faces/cascade.yaml": {"faces.detector": "cascade"},
    "faces/yunet.yaml": {"faces.detector": "yunet", "faces.model": MISSING},
    # The jobs, with the options that they choose.
    "adapt.yaml": {"adapt.subject_baseline": "median"},
    "demo.yaml": {
        "adapt.subject_baseline": "median",
        "dataset.clips_per_source_subject": 8,
        "dataset.clips_per_target_subject": 8,
        "dataset.difficulty": "hard",
        "dataset.target_subjects": 30,
    },
    "faces.yaml": {"faces.detector": "cascade"},
    "import_checkpoint.yaml": {"backbone.name": MISSING},
    "sweep.yaml": {"adapt.subject_baseline": "median"},
}
"""File → key → the value that is not the dataclass's default; all other files have the defaults throughout."""


def yaml_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def composed(folder: Path, file: str) -> dict[str, Any]:
    """The settings of one file, those that it builds on included, as plain containers."""
    with initialize_config_dir(config_dir=str(folder), version_base=configuration.VERSION_BASE):
        cfg = compose(file.removesuffix(".yaml"))
    plain: Any = OmegaConf.to_container(OmegaConf.create(filled(OmegaConf.to_container(cfg))), resolve=True)
    return dict(plain)


def filled(node: Any) -> Any:
    if isinstance(node, list):
        return [filled(item) for item in node]
    if isinstance(node, dict):
        return {key: filled(value) for key, value in node.items()}
    return MISSING if node == "???" else node


def changed(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value of every argument of a `_target_` that is not the default there, where there is one."""
    if not isinstance(node, Mapping):
        return
    if typed.TARGET not in node:
        for name, value in node.items():
            yield from changed(value, f"{key}.{name}" if key else str(name))
        return
    target = typed.find(node[typed.TARGET], key)
    defaults = dict(defaults_of(target))
    for name, value in node.items():
        if name in defaults:
            hint = typed.hint_of(node[typed.TARGET], name)
            built = value if value == MISSING else typed.convert(typed.build(value), hint, f"{key}.{name}")
            if built != defaults[name]:
                yield f"{key}.{name}", built
        else:
            yield from changed(value, f"{key}.{name}")


def defaults_of(target: Any) -> Iterator[tuple[str, Any]]:
    """Name and default of every field that has one."""
    for field in dataclasses.fields(target):
        if field.default is not dataclasses.MISSING:
            yield field.name, field.default
        elif field.default_factory is not dataclasses.MISSING:
            yield field.name, field.default_factory()


@pytest.mark.parametrize("file", yaml_files(configuration.folder()))
def test_a_file_changes_what_it_is_there_to_change(file: str) -> None:
    assert dict(changed(composed(configuration.folder(), file))) == CHANGED.get(file, {})


def test_no_file_is_listed_that_is_gone() -> None:
    assert set(CHANGED) <= set(yaml_files(configuration.folder()))


@pytest.mark.parametrize(
    ("file", "written", "other", "expected"),
    [
        ("limits/default.yaml", "memory_mb: 6144", "memory_mb: 4096", {"limits.memory_mb": 4096}),
        ("dataset/stressid.yaml", "[kycf, uymz,", "[kycf,", None),
        ("dataset/biovid.yaml", '"081014_w_27", "101609_m_36"', '"101609_m_36", "081014_w_27"', None),
        ("train/default.yaml", "  hop: 1", "  hop: 2", None),
        ("extract.yaml", "frames_per_second: 12.5", "frames_per_second: 25", {"sampling.frames_per_second": 25.0}),
        ("import_checkpoint.yaml", "    stride: 1", "    stride: 2", None),
    ],
)
def test_another_value_would_be_noticed(
    tmp_path: Path, file: str, written: str, other: str, expected: dict[str, Any] | None
) -> None:
    """In a value, a list, its order, and in settings within settings."""
    folder = tmp_path / "conf"
    shutil.copytree(configuration.folder(), folder)
    text = (folder / file).read_text(encoding="utf-8")
    assert text.count(written) == 1
    (folder / file).write_text(text.replace(written, other), encoding="utf-8")
    found = dict(changed(composed(folder, file)))
    assert found != CHANGED.get(file, {}) and expected in (None, found)
