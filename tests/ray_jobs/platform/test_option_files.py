"""A user's own YAML file as an option: what it may leave out, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from ray_jobs.platform.configuration import compose, compose_with_sources, flatten, inlined, instantiate
from ray_jobs.platform.option_files import read_option

T3A = "clipautt.adaptation.methods.t3a.T3A"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(job: str, word: str, text: str, *more: str) -> Any:
    """The settings with a file of this text as an option."""
    path = Path(word.partition("=")[2])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return compose(job, [word, *more])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("protocol: online\nmethod: {steps: 3}\n", ("online", "median", 3)),
        ("protocol: online\nmethod.steps: 3\n", ("online", "median", 3)),
        ("adapt:\n  protocol: online\n  method: {steps: 3}\n", ("online", "median", 3)),
        ("defaults: [infomax, _self_]\nmethod.steps: 3", ("per_subject", "none", 3)),
        ("# @package _global_\nadapt: {method: {steps: 3}}\nseed: 5", ("per_subject", "median", 3)),
        ("# Mine.\r\n\r\nprotocol: online\r\nmethod: {steps: 3}\r\n", ("online", "median", 3)),
        ("\ufeffmethod: {steps: 3}", ("per_subject", "median", 3)),
    ],
)
def test_a_file_changes_what_it_names(text: str, expected: tuple[str, str, int]) -> None:
    """Of the job's own option, unless it begins with others."""
    adapt = made("adapt", "adapt=my settings/mine.yaml", text).adapt
    assert (adapt.protocol, adapt.subject_baseline, adapt.method.steps) == expected


def test_another_method_and_later_words() -> None:
    text = f"method:\n  _target_: {T3A}\n  capacity: 5\n"
    cfg = made("adapt", "adapt=mine.yml", text, "adapt.method.update=after")
    assert instantiate(cfg.adapt).name == "T3A, per subject, median baseline, capacity 5, update after"
    assert compose("adapt", ["adapt=mine.yml", "adapt=t3a"]) == compose("adapt", ["adapt=t3a"])


def test_a_group_that_the_job_leaves_open_takes_the_class_of_its_options() -> None:
    backbone = instantiate(made("adapt", "backbone=mine.yaml", "name: ViT-B-32\nweights: openai\n").backbone)
    assert (backbone.name, backbone.weights) == ("ViT-B-32", "openai")


LENGTH = {"low": 4, "high": 12, "step": 4}


@pytest.mark.parametrize(
    "text",
    [
        "train.window.length: {low: 4, high: 12, step: 4}\nsampler: random\n",
        "train: {window: {length: {low: 4, high: 12, step: 4}}}\nsampler: random\n",
        "space:\n  train.window:\n    length: {low: 4, high: 12, step: 4}\nsampler: random\n",
        "# @package _global_\nspace: {train: {window: {length: {low: 4, high: 12, step: 4}}}}\nsampler: random\n",
        "defaults: [window, _self_]\ntrain.window.length.high: 12\nsampler: random",
        "defaults: [window, _self_]\nspace.train.window.length.high: 12\nsampler: random",
    ],
)
def test_a_search_space_needs_no_frame(text: str) -> None:
    cfg = made("sweep", "sweep=mine.yaml", text)
    searched = {key: value for key, value in flatten(OmegaConf.to_container(cfg.space)).items() if value is not None}
    assert searched == {f"train.window.length.{part}": value for part, value in LENGTH.items()}
    assert (cfg.sampler, cfg.train.window.length) == ("random", 16)


def test_choices_take_the_place_of_a_preset_s_range() -> None:
    for text in ("train: {window: {length: {choices: [4, 8]}}}\n", "space.train.window.length: {choices: [4, 8]}\n"):
        assert made("sweep", "sweep=mine.yaml", text).space.train.window.length == {"choices": [4, 8]}


def test_a_setting_without_a_default_is_searched_without_a_frame_too() -> None:
    cfg = made("sweep", "sweep=mine.yaml", "adapt:\n  prior: {choices: [null, estimate, 0.2]}\n")
    assert (cfg.adapt.prior, cfg.space.adapt.prior.choices) == (None, [None, "estimate", 0.2])


def test_fixed_settings_stay_beside_a_space() -> None:
    text = "train: {epochs: 3}\nspace: {adapt.method.steps: {choices: [5, 10]}}\ntrials: 7\n"
    cfg = made("sweep", "sweep=mine.yaml", text)
    assert (cfg.train.epochs, cfg.trials, cfg.space.adapt.method.steps) == (3, 7, {"choices": [5, 10]})


def test_the_help_knows_the_file_and_nothing_of_it_stays_behind() -> None:
    Path("mine.yaml").write_text("space.train.epochs: {choices: [1, 2]} # few\n")
    composition = compose_with_sources("sweep", ["sweep=mine.yaml"])
    assert composition.choices["sweep"] == "mine.yaml"
    assert composition.options["sweep"] == ("mine.yaml", "training", "tuning", "window")
    assert composition.sources[-1].path == Path("mine.yaml")
    assert "sweep" not in ConfigStore.instance().repo
    assert compose_with_sources("sweep").options["sweep"] == ("training", "tuning", "window")


@pytest.mark.parametrize(
    "text",
    [
        "# @package _global_\nspace: {train.context: {choices: [\"it's\", '${name} \\ x']}}\n",
        "trials: 3",
        "# 'quoted' and ${name}\ntrain.epochs: {choices: [1, 2]} # ümlaut\n",
    ],
)
def test_contents_stand_for_the_file_elsewhere(text: str) -> None:
    here = made("sweep", "sweep=mine.yaml", text, "trials=4", "name=x")
    words = inlined(["sweep=mine.yaml", "trials=4", "name=x"])
    Path("mine.yaml").unlink()
    assert words[1:] == ["trials=4", "name=x"]
    assert compose("sweep", words) == here


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mne.yaml", None, "no such file; did you mean 'mine.yaml'? options: default, t3a, or your own YAML file"),
        ("no/such.yaml", None, "no such file; options: default, t3a, or your own YAML file"),
        ("folder.yaml", None, "a folder, not a file"),
        ("latin.yaml", None, "line 2 is not UTF-8; save the file as UTF-8"),
        ("long.yaml", None, "1000001 bytes; a file of settings has at most 1000000"),
        ("mine.yaml", "", "expected settings, one per line as `key: value`"),
        ("mine.yaml", "- a\n", "expected settings, one per line as `key: value`"),
        ("mine.yaml", "online\n", "expected settings, one per line as `key: value`"),
        ("mine.yaml", "a: {b: 1\nc: 2\n", "line 2: expected ',' or '}', but got ':'"),
        ("mine.yaml", "a: 1\n\tb: 1\n", "line 2: found character '\\t' that cannot start any token"),
        ("mine.yaml", "a: 1\na: 2\n", "line 2: found duplicate key a"),
        ("mine.yaml", "a.b: 1\na: {b: 2}\n", "'b' is given twice"),
        ("mine.yaml", "a: 1\na.b: 2\n", "'a' is given twice"),
        ("mine.yaml", "1: 2\n", "the key 1 is not text; write it in quotes"),
        (
            "mine.yaml",
            "a: {on: b}\n",
            "the key True is not text, as YAML reads on, yes and true alike; write it in quotes",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_explained(here: Path, name: str, text: str | None, message: str) -> None:
    (here / "mine.yaml").write_text(text or "")
    (here / "folder.yaml").mkdir()
    (here / "latin.yaml").write_bytes(b"seed: 1\nprotocol: \xe9\n")
    (here / "long.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ValueError) as caught:
        read_option("adapt", name, ["default", "t3a"])
    assert str(caught.value) == f"adapt={name}: {message}"


@pytest.mark.parametrize(
    ("word", "text", "message"),
    [
        (
            "adapt=mine.yaml",
            "method: {stepps: 3}\n",
            "unknown key 'adapt.method.stepps'; did you mean 'adapt.method.steps'?",
        ),
        ("adapt=mine.yaml", "method: 3\n", "adapt.method=3: holds several settings: "),
        (
            "adapt=mine.yaml",
            "protocol: {a: 1}\n",
            "adapt.protocol holds settings, where a value as 'per_subject' belongs",
        ),
        ("backbone=mine.yaml", "nam: x\n", "unknown key 'backbone.nam'; did you mean 'backbone.name'?"),
        ("dataset=mine.yaml", "strict: maybe\n", "strict='maybe': expected true or false"),
    ],
)
def test_settings_that_nothing_reads_are_refused(word: str, text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        made("adapt", word, text)
    assert str(caught.value).startswith(f"{word}: {message}")


def test_other_wrong_words_are_explained() -> None:
    with pytest.raises(ValueError, match=r"^In 'mine\.yaml': Could not load 'adapt/nope'\.$"):
        made("adapt", "adapt=mine.yaml", "defaults: [nope]\n")
    with pytest.raises(ValueError, match=r"^'adapt' takes no group 'size'; its groups: "):
        made("adapt", "size=mine.yaml", "a: 1\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trails: 3\n", "unknown key 'trails'; did you mean 'trials'?"),
        (
            "space: {train: {windw: {length: 3}}}\n",
            "unknown key 'space.train.windw'; did you mean 'space.train.window'?",
        ),
        (
            "train.window.lenght: {low: 1, high: 2}\n",
            "unknown key 'train.window.lenght'; did you mean 'train.window.length'?",
        ),
    ],
)
def test_a_wrong_space_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        made("sweep", "sweep=mine.yaml", text)
    assert str(caught.value) == f"sweep=mine.yaml: {message}"
