"""Classes of settings: what they accept, what they refuse, and in which words."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from clipautt.settings import one_line, settings


class Engine:
    """No settings: an object that a field holds."""


@settings
class Inner:
    rate: float = 0.5
    """How fast."""


@settings
class Walk:
    steps: NonNegativeInt = 10
    """How many."""
    pace: Literal["slow", "fast"] = "slow"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    most: PositiveInt | None = None
    prior: float | Literal["estimate"] | None = None
    chosen: int | tuple[str, ...] = 1
    span: tuple[float, float] = (0.0, 1.0)
    name: str = ""
    quick: bool = False
    inner: Inner = Inner()
    engine: Engine | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.quick and self.pace == "slow":
            raise ValueError("quick=True with pace=slow: take pace=fast")


def refusal(prefix: str, **given: Any) -> str:
    with pytest.raises(ValueError) as caught:
        Walk(**given)
    assert isinstance(caught.value, ValidationError)
    return one_line(caught.value, prefix)


def test_settings_are_frozen_dataclasses() -> None:
    walk = Walk(steps=3, prior=1, span=(1, 2), inner=Inner(rate=2))
    assert type(walk.prior) is float and walk.span == (1.0, 2.0) and walk.inner.rate == 2.0
    assert dataclasses.replace(walk, steps=4).steps == 4
    assert dataclasses.asdict(walk)["inner"] == {"rate": 2.0}
    assert [field.name for field in dataclasses.fields(Inner)] == ["rate"]
    assert pickle.loads(pickle.dumps(walk)) == walk and hash(walk) == hash(pickle.loads(pickle.dumps(walk)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        walk.steps = 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": -1}, "walk.steps=-1: should be greater than or equal to 0"),
        ({"steps": True}, "walk.steps=True: should be an integer"),
        ({"steps": "3"}, "walk.steps='3': should be an integer"),
        ({"steps": 1.5}, "walk.steps=1.5: should be an integer"),
        ({"pace": "x"}, "walk.pace='x': should be one of slow, fast"),
        ({"share": 1}, "walk.share=1: should be less than 1"),
        ({"share": float("nan")}, "walk.share=nan: should be a finite number"),
        ({"share": "0.5"}, "walk.share='0.5': should be a number"),
        ({"most": 0}, "walk.most=0: should be greater than 0"),
        ({"prior": "x"}, "walk.prior='x': should be a number or estimate"),
        ({"chosen": True}, "walk.chosen=True: should be an integer or a list"),
        ({"chosen": ("a", 1)}, "walk.chosen=('a', 1): should be an integer or a list where each item is text"),
        ({"span": (1.0, "x")}, "walk.span[1]='x': should be a number"),
        ({"name": 3}, "walk.name=3: should be text"),
        ({"quick": 1}, "walk.quick=1: should be true or false"),
        ({"inner": 3}, "walk.inner=3: should be a group of settings"),
        ({"engine": 3}, "walk.engine=3: should be an instance of Engine"),
        ({"stepps": 1}, "unknown key 'walk.stepps'"),
        ({"quick": True}, "quick=True with pace=slow: take pace=fast"),
    ],
)
def test_a_wrong_value_is_explained_in_one_line(given: dict[str, Any], message: str) -> None:
    assert refusal("walk", **given) == message


def test_without_a_prefix_the_field_alone_is_named() -> None:
    assert refusal("", steps=-1) == "steps=-1: should be greater than or equal to 0"


def test_an_argument_without_a_name_is_named_all_the_same() -> None:
    with pytest.raises(ValidationError) as caught:
        Walk(1, "x")  # type: ignore[arg-type]
    assert one_line(caught.value, "walk") == "walk.pace='x': should be one of slow, fast"


def test_another_value_is_checked_as_well() -> None:
    with pytest.raises(ValidationError, match="should be 'slow' or 'fast'"):
        dataclasses.replace(Walk(), pace="x")


def test_what_has_no_default_must_be_given() -> None:
    @settings
    class Needs:
        root: str

    with pytest.raises(ValidationError) as caught:
        Needs()  # type: ignore[call-arg]
    assert one_line(caught.value, "dataset") == "dataset.root has no value; set it with dataset.root=…"


def test_settings_import_no_torch() -> None:
    code = "import sys, clipautt.settings; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
