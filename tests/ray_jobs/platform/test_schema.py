"""What is read from the source of a class of settings is what the class is; and no YAML repeats a default."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from clipautt.settings import STRICT, settings
from ray_jobs.platform import configuration, schema
from ray_jobs.platform.objects import build, find
from ray_jobs.platform.schema import MISSING, TARGET, fields, filled

Pace = Literal["slow", "fast"]
LEAST = 2
USUAL: Pace = "slow"


@settings
class Shoes:
    """Worn."""

    size: PositiveInt = 42
    """In points."""
    left: bool = True


@dataclasses.dataclass(frozen=True)
class Plain:
    """No settings."""

    x: int = 1


@settings
class Walk:
    """On foot."""

    root: str
    """Where it
    starts."""
    pace: Pace = USUAL
    prior: float | Literal["estimate"] | None = None
    ids: tuple[str, ...] = ("1_0", "b")
    chosen: int | tuple[str, ...] = -1
    paces: tuple[Pace, ...] = ()
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    steps: Annotated[int, Field(ge=LEAST, multiple_of=2)] = 4
    shoes: Shoes = Shoes(43, left=False)
    spare: Shoes | None = None
    plain: Plain = Plain()
    folder: Path | None = None


WALK, SHOES = f"{__name__}.Walk", f"{__name__}.Shoes"


def test_fields_are_read() -> None:
    known = fields(WALK)
    assert list(known) == [field.name for field in dataclasses.fields(Walk)]
    assert known["root"].default == MISSING and known["root"].doc == "Where it starts."
    assert known["pace"].default == "slow" and known["ids"].default == ["1_0", "b"] and known["chosen"].default == -1
    assert {name: field.allowed for name, field in known.items() if field.allowed} == {
        "pace": "one of slow, fast",
        "prior": "a number or estimate",
        "paces": "a list of slow, fast",
        "share": "0 to 1",
        "steps": "at least 2 and a multiple of 2",
    }
    assert {name for name, field in known.items() if field.takes_text} == {"root", "folder"}
    assert {name for name, field in known.items() if field.lists_text} == {"ids", "chosen"}
    assert fields("no.such.Thing") == {}


def test_defaults_are_filled_in() -> None:
    shoes = {TARGET: SHOES, "size": 43, "left": False}
    whole = filled({"walk": {TARGET: WALK, "ids": ["c"], "spare": {"size": 1}, "unknown": 1}, "seed": [1]})
    assert whole["walk"]["shoes"] == shoes and whole["walk"]["ids"] == ["c"] and whole["walk"]["root"] == MISSING
    assert whole["walk"]["spare"] == {TARGET: SHOES, "size": 1, "left": True}
    assert whole["walk"]["unknown"] == 1 and "plain" not in whole["walk"] and whole["seed"] == [1]
    assert filled({TARGET: WALK, "shoes": {"left": True}})["shoes"] == {**shoes, "left": True}
    assert build(filled({TARGET: WALK, "root": "."})) == Walk(".")


def test_a_default_that_only_running_tells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_settings").mkdir()
    (tmp_path / "odd_settings" / "late.py").write_text("class Late:\n    x: int = max(1, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TypeError, match=r"^odd_settings\.late\.Late\.x: defaults .* must be .*, not max\(1, 2\)$"):
        fields("odd_settings.late.Late")


# The classes and the files of the project.


def yaml_files() -> list[Path]:
    return sorted(configuration.folder().rglob("*.yaml"))


def content(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a tree."""
    if isinstance(node, Mapping):
        if TARGET in node:
            yield node[TARGET]
        for child in node.values():
            yield from targets(child)


@pytest.mark.parametrize(
    "target", sorted({target for path in yaml_files() for target in targets(filled(content(path)))})
)
def test_the_source_says_what_the_class_is(target: str) -> None:
    owner, known = find(target), fields(target)
    real = {field.name: field for field in dataclasses.fields(owner) if field.init}
    hints = typing.get_type_hints(owner)
    assert list(known) == list(real)
    for name, field in known.items():
        assert field.doc, f"{name} has no docstring, which is its help"
        assert_default(field, real[name])
        assert_text(field, hints[name])
        assert_allowed(field, owner)


def assert_default(field: schema.Field, real: dataclasses.Field[Any]) -> None:
    value = real.default if real.default_factory is dataclasses.MISSING else real.default_factory()
    if value is dataclasses.MISSING:
        assert field.default == MISSING
    elif field.in_file:
        built = build(field.default)
        assert (tuple(built) if isinstance(value, tuple) else built) == value, field.name


def assert_text(field: schema.Field, hint: Any) -> None:
    """A numeral is taken for text where text or a path, and no number, is accepted."""
    takes_text = accepts(hint, "an unlikely word") or accepts(hint, Path("an unlikely word"))
    takes_number = accepts(hint, 1.5) or accepts(hint, 1)
    assert field.takes_text == (takes_text and not takes_number), field.name
    assert field.lists_text == (accepts(hint, ("an unlikely word",)) and not accepts(hint, (1.5,))), field.name


def accepts(hint: Any, value: Any) -> bool:
    try:
        TypeAdapter(tuple[hint], config=STRICT).validate_python((value,))
    except ValidationError:
        return False
    return True


def assert_allowed(field: schema.Field, owner: Any) -> None:
    """What a class that checks itself says of limits and options is told."""
    if hasattr(owner, "__pydantic_fields__"):
        about = owner.__pydantic_fields__[field.name]
        told = f"{about.annotation} {about.metadata}"
        limited = any(word in told for word in ("Gt(", "Ge(", "Lt(", "Le(", "MultipleOf(", "Literal["))
        assert bool(field.allowed) == limited, f"{field.name}: {field.allowed!r} of {told}"


def repeated(node: Any, key: str = "") -> Iterator[str]:
    """Keys whose values are the default of their class."""
    if isinstance(node, Mapping):
        known = fields(node[TARGET]) if TARGET in node else {}
        for name, value in node.items():
            if name in known and value == known[name].default:
                yield f"{key}{name}"
            yield from repeated(value, f"{key}{name}.")


@pytest.mark.parametrize("path", yaml_files(), ids=lambda path: path.relative_to(configuration.folder()).as_posix())
def test_no_file_repeats_a_default(path: Path) -> None:
    """But for what an option of a group is there to choose, such as the detector in `none.yaml`."""
    chosen = {"backbone/embedded.yaml": ["name"], "faces/none.yaml": ["detector"]}
    assert list(repeated(content(path))) == chosen.get(path.relative_to(configuration.folder()).as_posix(), [])


@pytest.mark.parametrize("words", [["train", "--help"], ["adapt", "adapt.stepps=3"]], ids="".join)
def test_help_and_a_wrong_key_need_no_torch(words: list[str]) -> None:
    code = f"import sys; from ray_jobs import cli; cli.main({words})"
    code += "; print([name for name in ('torch', 'ray') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
