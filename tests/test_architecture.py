"""Imports point one way: the method knows no Ray, Hydra or web framework, and each module uses only earlier ones."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = [
    "action_units",
    "clips",
    "preprocessing",
    "augmentation",
    "decoding",
    "datasets",
    "faces",
    "face_tracks",
    "reader",
    "reader_process",
    "text_tower",
    "frozen_linear",
    "packed_tower",
    "frozen_clip",
    "small_clip",
    "weight_files",
    "open_clip_models",
    "backbone",
    "pretraining",
    "features",
    "feature_store",
    "store_care",
    "metrics",
    "windows",
    "model",
    "published",
    "training",
    "linearisation",
    "memory",
    "source",
    "adapt_config",
    "priors",
    "objectives",
    "tuning",
    "methods",
    "adaptation",
    "personalization",
    "baselines",
    "results",
    "predictor",
    "openface",
    "explanations",
    "reports",
]
"""The modules of clipautt in the order in which data flows: one may import those before it."""

JOB_LAYERS = ["typed", "configuration", "progress", "runs", "cluster", "actor_pool", "usage", "cli"]
"""What the jobs in ray_jobs stand on, in the same sense; the jobs themselves come after."""

FORBIDDEN = {"ray", "hydra", "omegaconf", "fastapi", "starlette", "ray_jobs"}


def imported_modules(path: Path, package: str) -> Iterator[str]:
    """Dotted names a file imports, relative imports made absolute, imports inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def wrong_imports(package: Path, layers: list[str]) -> list[str]:
    """`file imports module` for each import of a module of the same package that comes later in `layers`."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] not in layers:
            continue
        own = layers.index(parts[0])
        dotted = ".".join([package.name, *parts[:-1]])
        for module in imported_modules(path, dotted):
            names = module.split(".")
            if names[0] == package.name and len(names) > 1 and names[1] in layers[own + 1 :]:
                wrong.append(f"{path.relative_to(package.parent)} imports {module}")
    return sorted(set(wrong))


def test_method_imports_no_cluster_configuration_or_web_framework() -> None:
    for path in sorted((ROOT / "clipautt").rglob("*.py")):
        package = ".".join(path.relative_to(ROOT).parts[:-1])
        used = {module.split(".")[0] for module in imported_modules(path, package)}
        assert not used & FORBIDDEN, f"{path.relative_to(ROOT)} imports {sorted(used & FORBIDDEN)}"


def test_every_module_has_its_place() -> None:
    modules = {path.stem for path in (ROOT / "clipautt").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "clipautt").glob("*/__init__.py")}
    unplaced = (modules | packages) - set(LAYERS)
    assert not unplaced, f"add {sorted(unplaced)} to LAYERS in {Path(__file__).name}, where data reaches them"


def test_method_imports_point_up() -> None:
    assert wrong_imports(ROOT / "clipautt", LAYERS) == []


def test_foundation_of_the_jobs_imports_no_job() -> None:
    jobs = {path.stem for path in (ROOT / "ray_jobs").glob("*.py")} - {"__init__", *JOB_LAYERS}
    assert wrong_imports(ROOT / "ray_jobs", [*JOB_LAYERS, *sorted(jobs)][: len(JOB_LAYERS)]) == []
    for name in JOB_LAYERS:
        used = {module for module in imported_modules(ROOT / "ray_jobs" / f"{name}.py", "ray_jobs")}
        assert not used & {f"ray_jobs.{job}" for job in jobs}, f"ray_jobs/{name}.py imports a job"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from sample.late import x", ["sample/early.py imports sample.late", "sample/early.py imports sample.late.x"]),
        ("from . import late", ["sample/early.py imports sample.late"]),
        ("def f():\n    import sample.late.part", ["sample/early.py imports sample.late.part"]),
        ("import other.late", []),
        ("from sample import early", []),
    ],
)
def test_an_import_that_points_down_is_found(tmp_path: Path, line: str, found: list[str]) -> None:
    package = tmp_path / "sample"
    package.mkdir()
    (package / "early.py").write_text(line)
    (package / "late.py").write_text("from sample import early")
    assert wrong_imports(package, ["early", "late"]) == found
