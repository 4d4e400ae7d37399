"""Composition of the settings: what is accepted, what is refused and in which words; and every YAML of the project."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pydantic import NonNegativeInt

from clipautt.commands import quoted
from clipautt.settings import settings
from ray_jobs.platform import configuration, jobs, objects, usage
from ray_jobs.platform.configuration import compose, instantiate, resolved


@settings
class Inner:
    rate: float = 0.5
    mode: Literal["fast", "exact"] = "fast"


@settings
class Sample:
    steps: NonNegativeInt
    folder: Path | None = None
    name: str | None = None
    windows: tuple[int, ...] = (1, 2)
    tempo: int | Literal["auto"] = "auto"
    flag: bool = False
    inner: Inner = Inner()
    mean: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Named:
    subjects: tuple[str, ...] = ()
    label: str | None = "none"
    root: Path | None = None
    chosen: int | tuple[str, ...] = 1
    sizes: tuple[int, ...] = ()
    rate: float = 0.5
    either: int | str = 1


HERE, INNER = f"{__name__}.Sample", f"{__name__}.Inner"


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "walk.yaml": "defaults: [_self_, {adapt: usual}, {dataset: synthetic}, {experiment: null}]\n"
        "name: default\nseed: 0\nrate: 1.0\nquick: false\nlist: [1]\nnames: []\nsubject: null\nvideo: ???\n",
        "rest.yaml": "minutes: 5\n",
        "adapt/usual.yaml": f"_target_: {HERE}\nsteps: 10\nwindows: [4, 8]\n",
        "adapt/paper.yaml": f"_target_: {HERE}\nsteps: 1\n",
        "dataset/synthetic.yaml": "clips: 3\n",
        "dataset/biovid.yaml": "root: ???\n",
        "dataset/named.yaml": f"_target_: {__name__}.Named\nsubjects: [p1]\nlabel: none\nroot: .\nchosen: 1\n"
        "sizes: []\nrate: 0.5\neither: 1\n",
        "experiment/long.yaml": "# @package _global_\ndefaults: [{override /adapt: paper}]\nseed: 7\n",
        "other/thing.yaml": "x: 1\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(configuration, "folder", lambda: tmp_path)
    return tmp_path


def test_words_and_groups_are_composed(conf: Path) -> None:
    cfg = compose("walk", ["adapt=paper", "adapt.steps=3", "seed=4", "list=[2,3]", "quick=true", "rate=2"])
    assert (cfg.adapt.steps, cfg.seed, cfg.list, cfg.quick, cfg.rate) == (3, 4, [2, 3], True, 2)
    assert "hydra" not in cfg


def test_an_experiment_sets_several_groups(conf: Path) -> None:
    cfg = compose("walk", ["experiment=long"])
    assert (cfg.adapt.steps, cfg.seed) == (1, 7)


def test_settings_are_in_struct_mode(conf: Path) -> None:
    with pytest.raises(AttributeError, match="sede"):
        _ = compose("walk").sede


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("adapt.step=3", "unknown key 'adapt.step'; did you mean 'adapt.steps'?"),
        ("steps=3", "unknown key 'steps'; did you mean 'adapt.steps'?"),
        ("sede=3", "unknown key 'sede'; did you mean 'seed'?"),
        ("datset=biovid", "unknown key 'datset'; did you mean 'dataset'?"),
        ("dataset=biovide", "unknown option dataset=biovide; did you mean 'biovid'? options: biovid, named, synthetic"),
        ("dataset=zzz", "unknown option dataset=zzz; options: biovid, named, synthetic"),
        ("other=thing", "'walk' takes no group 'other'; its groups: adapt, dataset, experiment"),
        ("+adapt.step=3", "unknown key 'adapt.step'; did you mean 'adapt.steps'?"),
        ("++sede=3", "unknown key 'sede'; did you mean 'seed'?"),
        ("+adapt.deep.er=3", "unknown key 'adapt.deep.er'; "),
        ("+minutes=3", "unknown key 'minutes'; "),
        ("~sede", "unknown key 'sede'; did you mean 'seed'?"),
        ("~seed=1", "~seed=1: not removed, as the value is 0"),
        ("+other=thing", "'walk' takes no group 'other'; its groups: adapt, dataset, experiment"),
        ("+dataset=zzz", "unknown option dataset=zzz; options: biovid, named, synthetic"),
        ("+datset=biovid", "unknown key 'datset'; did you mean 'dataset'?"),
        ("~datset", "unknown key 'datset'; did you mean 'dataset'?"),
        ("mode=fast", "unknown key 'mode'; did you mean 'adapt.inner.mode'?"),
        ("adapt.mode=fast", "unknown key 'adapt.mode'; did you mean 'adapt.inner.mode'?"),
        ("adapt.inner=fast", "'adapt.inner' holds several settings; set one of adapt.inner.rate, adapt.inner.mode"),
        ("adapt.zzzz.qqqq=1", "unknown key 'adapt.zzzz.qqqq'; allowed: "),
        ("seed", "cannot read 'seed': a setting is written key=value"),
        ("seed=abc", "seed=abc: expected a number, as in the default seed=0"),
        ("quick=3", "quick=3: expected true or false, as in the default quick=false"),
        ("list=3", "list=3: expected a list, written list=[a,b]"),
        (
            "seed=1,2",
            "'seed=1,2' gives seed several values: give one; a list is written seed=[a,b], one text with",
        ),
        ("list=[1,2", "cannot read 'list=[1,2': "),
    ],
)
def test_a_wrong_word_is_explained(conf: Path, word: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        compose("walk", [word])
    assert str(caught.value).startswith(message)
    assert "hydra" not in str(caught.value).lower()


def test_what_no_file_names_has_its_class_s_default(conf: Path) -> None:
    cfg = compose("walk")
    assert cfg.adapt.tempo == "auto" and cfg.adapt.folder is None and cfg.adapt.name is None
    assert resolved(cfg.adapt.inner) == {"_target_": INNER, "rate": 0.5, "mode": "fast"}
    assert list(cfg.adapt) == ["_target_", *(field.name for field in dataclasses.fields(Sample))]
    assert instantiate(compose("walk", ["adapt.inner.rate=2"]).adapt).inner == Inner(rate=2.0)
    assert instantiate(compose("walk", ["adapt.inner={rate: 2}"]).adapt).inner == Inner(rate=2.0)


@pytest.mark.parametrize("word", ["adapt.tempo=3", "+adapt.tempo=3", "++adapt.tempo=3"])
def test_a_plus_may_stand_before_a_setting_that_there_is(conf: Path, word: str) -> None:
    assert compose("walk", [word]).adapt.tempo == 3


def test_a_setting_that_is_taken_away_has_its_class_s_default(conf: Path) -> None:
    assert compose("walk", ["adapt.windows=[3]", "~adapt.windows"]).adapt.windows == [1, 2]
    assert "seed" not in compose("walk", ["~seed"])


def test_an_unknown_job_names_the_nearest(conf: Path) -> None:
    with pytest.raises(ValueError, match="no configuration for 'wlak'; did you mean 'walk'"):
        compose("wlak")


@pytest.mark.parametrize("text", ["it's", "a b=c, [d] {e}", "C:\\x\\", "${seed}", "\\'", "", "ü$%(1).mp4", '"q"'])
def test_quoted_text_comes_back_unchanged(conf: Path, text: str) -> None:
    OverridesParser.create().parse_override(f"video={quoted(text)}")
    assert compose("walk", [f"video={quoted(text)}"]).video == text


def test_a_path_needs_no_quotes(conf: Path) -> None:
    assert compose("walk", ["video=/data/a (1)/x=2.mp4"]).video == "/data/a (1)/x=2.mp4"


def test_a_name_may_look_like_a_number(conf: Path) -> None:
    assert compose("walk", ["name=1_0"]).name == "1_0"
    assert compose("walk", ["name=true"]).name == "true"
    assert compose("walk", ["subject=true"]).subject == "true"
    assert compose("walk", ["name=[1,TRUE]"]).name == ["1", "TRUE"]


def test_classes_may_look_like_numbers_or_truth_values(conf: Path) -> None:
    written = ["0", "1", "FALSE", "true", "yes", "off", "null", "1e3", "x"]
    assert compose("walk", [f"names=[{','.join(written)}]"]).names == written
    cfg = compose("walk", ["dataset=named", f"dataset.subjects=[{', '.join(written)}]", "dataset.label=FALSE"])
    assert instantiate(cfg.dataset).subjects == tuple(written) and instantiate(cfg.dataset).label == "FALSE"
    assert compose("walk", ["list=[0,true]"]).list == [0, True]
    assert compose("walk", ["names=[Zoë, 'Åsa',x]"]).names == ["Zoë", "Åsa", "x"]
    with pytest.raises(ValueError, match=r"cannot read 'names=\[Zoë"):
        compose("walk", ["names=[Zoë"])


@pytest.mark.parametrize(
    "written",
    ["8_1", "2024_01", "1e3", "1_0.5", "1.50", "007", "08", "12", "+5", "-0", "nan", "INF", "0x1", "8_1a", "p1", "a b"],
)
def test_subjects_that_look_like_numbers_keep_their_names(conf: Path, written: str) -> None:
    cfg = compose("walk", ["dataset=named", f"dataset.subjects=[{written}, 'x 9_9', {written},\"1_1\"]"])
    assert instantiate(cfg.dataset).subjects == (written, "x 9_9", written, "1_1")
    cfg = compose("walk", ["dataset=named", f"dataset.label={written}", f"dataset.chosen=[{written}]"])
    assert instantiate(cfg.dataset).label == written and instantiate(cfg.dataset).chosen == (written,)
    assert instantiate(compose("walk", ["dataset=named", f"dataset.root={written}"]).dataset).root == Path(written)


def test_numbers_stay_numbers_where_they_are_asked_for(conf: Path) -> None:
    words = ["chosen=1_0", "sizes=[1_000,2]", "rate=1e-3", "either=1_0", "label=null"]
    built = instantiate(compose("walk", ["dataset=named", *(f"dataset.{word}" for word in words)]).dataset)
    assert built == Named(("p1",), root=Path(), chosen=10, sizes=(1000, 2), rate=0.001, either=10, label=None)


@pytest.mark.parametrize(
    ("written", "number"), [("8_1", "81"), ("1e3", "1000.0"), ("1.50", "1.5"), ("2024_01", "202401")]
)
def test_what_may_be_text_or_a_number_must_be_quoted(conf: Path, written: str, number: str) -> None:
    with pytest.raises(ValueError) as caught:
        compose("walk", [f"subject={written}"])
    told = f"subject={written}: is it text or a number? Write \"subject='{written}'\" or subject={number}"
    assert str(caught.value) == told
    assert compose("walk", [f"subject='{written}'"]).subject == written
    assert compose("walk", ["subject=81"]).subject == 81
    assert compose("walk", ["subject=007"]).subject == "007"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 1000.0}, "dataset.label=1000.0: should be text"),
        ({"subjects": ["a", 1.5]}, "dataset.subjects[1]=1.5: should be text"),
    ],
)
def test_text_that_a_file_gives_as_a_float_is_refused(change: dict[str, Any], message: str) -> None:
    """How it was written is lost by then: 1e3 and 1000.0 are one number."""
    node = OmegaConf.create({"dataset": {"_target_": f"{__name__}.Named", **change}})
    with pytest.raises(ValueError) as caught:
        instantiate(node.dataset)
    assert str(caught.value) == message


def test_another_composition_in_between_changes_nothing(conf: Path) -> None:
    assert compose("walk", ["seed=1"]).seed == 1
    assert compose("rest").minutes == 5
    assert compose("walk").seed == 0


def test_resolved_names_what_is_missing(conf: Path) -> None:
    with pytest.raises(ValueError, match=r"^video has no value; set it with video=…$"):
        resolved(compose("walk"))
    assert resolved(compose("walk", ["video=x"]))["adapt"]["windows"] == [4, 8]


def test_instantiate_converts_by_annotation() -> None:
    node = OmegaConf.create(
        {
            "adapt": {
                "_target_": HERE,
                "steps": 3.0,
                "mean": [0, 1],
                "folder": "runs",
                "name": 71309,
                "windows": [4, 8],
                "tempo": 2,
                "inner": {"_target_": f"{__name__}.Inner", "rate": 1},
            }
        }
    )
    built = instantiate(node.adapt)
    assert built == Sample(3, Path("runs"), "71309", (4, 8), 2, False, Inner(rate=1.0))
    assert type(built.steps) is int
    assert type(built.inner.rate) is float
    assert instantiate(node)["adapt"] == built


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "abc"}, "adapt.steps='abc': should be an integer"),
        ({"steps": 1.5}, "adapt.steps=1.5: should be an integer"),
        ({"steps": True}, "adapt.steps=True: should be an integer"),
        ({"steps": -1}, "adapt.steps=-1: should be greater than or equal to 0"),
        ({"windows": 3}, "adapt.windows=3: should be a list"),
        ({"windows": ["x"]}, "adapt.windows[0]='x': should be an integer"),
        ({"tempo": "slow"}, "adapt.tempo='slow': should be an integer or auto"),
        ({"flag": 1}, "adapt.flag=1: should be true or false"),
        ({"stepps": 1}, "unknown key 'adapt.stepps'; did you mean 'steps'?"),
        ({"inner": {"_target_": INNER, "rate": "x"}}, "adapt.inner.rate='x': should be a number"),
        ({"inner": {"_target_": INNER, "mode": "slow"}}, "adapt.inner.mode='slow': should be one of fast, exact"),
        ({"_target_": "no.such.Thing"}, "adapt._target_='no.such.Thing' cannot be loaded: No module named 'no'"),
        ({"steps": "???"}, "adapt.steps has no value; set it with adapt.steps=…"),
    ],
)
def test_instantiate_explains(change: dict[str, Any], message: str) -> None:
    node = OmegaConf.create({"adapt": {"_target_": HERE, "steps": 1, **change}})
    with pytest.raises(ValueError) as caught:
        instantiate(node.adapt)
    assert str(caught.value) == message


def test_instantiate_wants_every_argument() -> None:
    with pytest.raises(ValueError, match=r"^steps has no value; set it with steps=…$"):
        instantiate({"_target_": HERE})


def test_the_conf_folder_is_found() -> None:
    assert (configuration.folder() / "cluster" / "auto.yaml").is_file()


# Every YAML of the project.


def yaml_files() -> list[Path]:
    return sorted(path.relative_to(configuration.folder()) for path in configuration.folder().rglob("*.yaml"))


def words_for(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(job, words) that compose a file: the job's own, or a choice in each job that takes the group."""
    group, option = path.parent.as_posix(), path.stem
    if group == ".":
        yield option, []
        return
    for job in configuration.configured_jobs():
        yield from ((job, [f"{name}={option}"]) for name in groups_of(job) if name.partition("@")[0] == group)
        if group == "shared" and configuration.folder() / path in files_of(job):
            yield job, []


@cache
def files_of(job: str) -> frozenset[Path]:
    return frozenset(source.path for source in configuration.compose_with_sources(job).sources)


@cache
def groups_of(job: str) -> tuple[str, ...]:
    return tuple(configuration.compose_with_sources(job).choices)


def example(hint: Any) -> Any:
    """A value for a mandatory setting."""
    return {int: 1, float: 1.0}.get(hint, "example")


def with_examples(node: Any) -> Any:
    """Plain containers with every `???` replaced."""
    if isinstance(node, list):
        return [with_examples(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    target = objects.find(node["_target_"]) if "_target_" in node else None
    hints = typing.get_type_hints(target) if dataclasses.is_dataclass(target) else {}
    return {key: example(hints.get(key)) if value == "???" else with_examples(value) for key, value in node.items()}


@pytest.mark.parametrize("path", yaml_files(), ids=str)
def test_every_yaml_composes_and_instantiates(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example").write_text("what a setting that must be there names")
    jobs = list(words_for(path))
    if not configuration.configured_jobs():
        jobs = []
        instantiate(with_examples(OmegaConf.to_container(OmegaConf.load(configuration.folder() / path))))
    else:
        assert jobs, f"no job takes conf/{path}"
    for job, words in jobs:
        cfg = OmegaConf.create(with_examples(OmegaConf.to_container(compose(job, words), resolve=False)))
        instantiate(cfg)


@pytest.mark.parametrize("job", configuration.configured_jobs())
def test_every_primary_configuration_has_its_job(job: str) -> None:
    assert job in {known.module for known in jobs.jobs().values()}


@pytest.mark.parametrize("job", configuration.configured_jobs())
def test_every_setting_is_explained(job: str) -> None:
    silent = [item.key for item in usage.settings(configuration.compose_with_sources(job)) if not item.about]
    assert not silent, f"conf/{job}.yaml or its groups: no comment beside {silent}"
