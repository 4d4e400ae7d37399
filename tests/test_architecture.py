"""Imports point one way: the method knows no Ray, Hydra or web framework, and each module uses only earlier ones."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

METHOD = {
    "": [
        "commands",
        "files",
        "tables",
        "subjects",
        "action_units",
        "clips",
        "footage",
        "manifest",
        "metrics",
        "memory",
        "settings",
        "video",
        "datasets",
        "backbones",
        "features",
        "model",
        "adaptation",
        "evaluation",
        "selection",
        "prediction",
        "study",
        "personalizing",
        "predictor",
    ],
    "video": [
        "preprocessing",
        "augmentation",
        "containers",
        "display",
        "packets",
        "pictures",
        "decoding",
        "head_turn",
        "faces",
        "face_check",
        "tracks",
        "reader",
        "stills",
        "reader_process",
        "whole",
    ],
    "datasets": ["files", "label_files", "layout", "inputs", "biovid", "stressid", "bah", "folder", "synthetic"],
    "backbones": [
        "names",
        "registry",
        "publications",
        "hub",
        "small_clip",
        "text_tower",
        "facts",
        "frozen_linear",
        "packed_tower",
        "frozen_clip",
        "embedded",
        "tensor_files",
        "weight_files",
        "open_clip_models",
        "fetching",
        "loading",
        "pretraining",
    ],
    "features": ["clip_features", "packed", "contents", "store", "references", "maintenance", "rebase"],
    "model": ["windows", "network", "checkpoint", "published", "training"],
    "adaptation": [
        "priors",
        "predictions",
        "readout",
        "source",
        "method",
        "methods",
        "agreement",
        "omissions",
        "basis",
        "driver",
        "personalization",
    ],
    "prediction": [
        "columns",
        "cautions",
        "lettering",
        "shown",
        "figure",
        "notebook",
        "answers",
        "comparison",
        "tables",
        "overlay_frames",
        "overlay_plan",
        "overlay",
    ],
    "evaluation": [
        "results",
        "au_tables",
        "facs_coding",
        "prompt_changes",
        "stories",
        "clip_stories",
        "reports",
    ],
    "selection": [
        "folds",
        "scoring",
        "trials",
        "surrogate",
        "importances",
        "curves",
        "ranking",
        "report",
        "drawing",
        "figures",
        "sentences",
        "page",
    ],
    "study": [
        "clip_table",
        "measures",
        "names",
        "statistics",
        "conditions",
        "validity",
        "summary",
        "export",
        "figures",
        "page",
    ],
}
"""Package of clipautt → its modules in the order in which data flows: each may import those before it."""

PLATFORM = [
    "nearest",
    "secrets",
    "schema",
    "objects",
    "option_files",
    "overriding",
    "configuration",
    "word_files",
    "jobs",
    "usage",
    "places",
    "progress",
    "metrics",
    "runs",
    "tokens",
    "messages",
    "cluster",
    "actor_pool",
    "footage",
    "manifests",
    "methods",
    "predictors",
    "extraction",
]
"""Of ray_jobs.platform, in the same sense."""

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


def parts_of(package: Path) -> set[str]:
    """Names of the modules and packages right inside a package."""
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    return modules | {path.parent.name for path in package.glob("*/__init__.py")}


def dotted(path: Path, root: Path) -> str:
    """Dotted name of a package's folder."""
    return ".".join(path.relative_to(root).parts)


def wrong_imports(package: Path, layers: list[str], root: Path = ROOT) -> list[str]:
    """`file imports module` for each import of a part of the same package that comes later in `layers`."""
    wrong = []
    prefix = [*package.relative_to(root).parts]
    for path in sorted(package.rglob("*.py")):
        part = path.relative_to(package).with_suffix("").parts[0]
        if part not in layers:
            continue
        for module in imported_modules(path, dotted(path.parent, root)):
            names = module.split(".")
            inside = names[: len(prefix)] == prefix and len(names) > len(prefix)
            if inside and names[len(prefix)] in layers[layers.index(part) + 1 :]:
                wrong.append(f"{path.relative_to(root)} imports {module}")
    return sorted(set(wrong))


def test_method_imports_no_cluster_configuration_or_web_framework() -> None:
    for path in sorted((ROOT / "clipautt").rglob("*.py")):
        used = {module.split(".")[0] for module in imported_modules(path, dotted(path.parent, ROOT))}
        assert not used & FORBIDDEN, f"{path.relative_to(ROOT)} imports {sorted(used & FORBIDDEN)}"


@pytest.mark.parametrize("package", METHOD)
def test_method_imports_point_back_along_the_data(package: str) -> None:
    folder = ROOT / "clipautt" / package
    assert parts_of(folder) == set(METHOD[package]), f"place them in METHOD of {Path(__file__).name}"
    assert wrong_imports(folder, METHOD[package]) == []


def test_platform_imports_point_one_way_and_know_no_job() -> None:
    folder = ROOT / "ray_jobs" / "platform"
    assert parts_of(folder) == set(PLATFORM), f"place them in PLATFORM of {Path(__file__).name}"
    assert wrong_imports(folder, PLATFORM) == []
    others = parts_of(ROOT / "ray_jobs") - {"platform"}
    for path in sorted(folder.rglob("*.py")):
        used = {".".join(m.split(".")[:2]) for m in imported_modules(path, dotted(path.parent, ROOT))}
        assert not used & {f"ray_jobs.{other}" for other in others}, f"{path.relative_to(ROOT)} imports a job"


def test_a_job_imports_no_other_job() -> None:
    jobs = {path.parent for path in (ROOT / "ray_jobs").glob("*/job.py")}
    assert len(jobs) >= 15
    for job in sorted(jobs):
        allowed = {"ray_jobs", "ray_jobs.platform", f"ray_jobs.{job.name}", "ray_jobs.cli"}
        for path in sorted(job.rglob("*.py")):
            used = {".".join(m.split(".")[:2]) for m in imported_modules(path, dotted(path.parent, ROOT))}
            wrong = {m for m in used if m.startswith("ray_jobs")} - allowed
            assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"
            assert path.name == "__main__.py" or "ray_jobs.cli" not in used, f"{path.relative_to(ROOT)} imports the cli"


@pytest.mark.parametrize("wing", ["clipautt", "ray_jobs"])
def test_every_package_says_what_it_is_and_which_file_to_open(wing: str) -> None:
    for path in sorted((ROOT / wing).rglob("__init__.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert re.search(r"\b[Oo]pen `[a-z_]+`", doc) or path.parent.name == wing, f"{path}: which file to open first?"


def test_tests_mirror_the_packages() -> None:
    for path in sorted((ROOT / "tests").glob("*/**/test_*.py")):
        if path.parent.name == "notebooks":
            continue
        folder = ROOT / path.relative_to(ROOT / "tests").parent
        assert folder.is_dir(), f"{path.relative_to(ROOT)} tests a package that there is not"


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
    assert wrong_imports(package, ["early", "late"], tmp_path) == found
