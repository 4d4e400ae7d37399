"""The search space: what a YAML file may say, what trials choose, and what a seed fixes."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from clipautt.adaptation.method import AdaptConfig
from clipautt.model.training import TrainConfig
from clipautt.model.windows import WindowSpec
from ray_jobs.platform.configuration import compose, instantiate, resolved
from ray_jobs.sweep.space import DIMENSIONS, SearchSpace, SeededSampler, make_space
from tests.support.configs import ZERO_SHOT, adapt_config

TUNED = adapt_config(objective="infomax")
SPACE = {
    "learning_rate": {"low": 0.03, "high": 1.0, "log": True},
    "objective": {"choices": ["none", "infomax_kl"]},
    "window_length": {"low": 4, "high": 32, "step": 4},
    "steps": {"choices": [5, 10]},
    "kl_weight": {"low": 0, "high": 1},
    "readout": None,
}


def make(space: dict[str, Any] | None = None, *, adapt: AdaptConfig | None = None) -> SearchSpace:
    return make_space(SPACE if space is None else space, train=TrainConfig(), adapt=adapt or adapt_config())


def chosen(space: SearchSpace, *, trials: int, seed: int = 0, sessions: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Values of a study's trials, scored by window length; at each number in `sessions` it is opened anew."""
    storage = optuna.storages.InMemoryStorage()
    for _ in range(trials):
        done = 0 if not storage.get_all_studies() else len(storage.get_all_trials(0))
        if done == 0 or done in sessions:
            study = optuna.create_study(
                storage=storage,
                study_name="one",
                sampler=SeededSampler(seed),
                direction="maximize",
                load_if_exists=True,
            )
        trial = study.ask()
        space(trial)
        study.tell(trial, float(trial.params["window_length"]) + trial.params.get("learning_rate", 0.0))
    return [trial.params for trial in study.trials]


def test_the_project_s_own_space_is_valid_and_names_every_dimension() -> None:
    cfg = compose("sweep", ["manifest=m.parquet"])
    space = make_space(resolved(cfg)["space"], train=instantiate(cfg.train), adapt=instantiate(cfg.adapt))
    names = [dimension.name for dimension in space.dimensions]
    assert names == ["objective", "readout", "window_length", "steps", "learning_rate", "balance_weight"]
    assert set(cfg.space) == set(DIMENSIONS)


def test_values_become_configurations() -> None:
    training, adaptation = make(adapt=adapt_config(subject_baseline="mean", readout="mean_windows")).configs(
        {"window_length": 12, "objective": "infomax_kl", "steps": 5, "learning_rate": 0.5, "kl_weight": 0.25}
    )
    assert training == TrainConfig(window=WindowSpec(12), subject_baseline="mean")
    shared = {"subject_baseline": "mean", "readout": "mean_windows"}
    assert adaptation == adapt_config(objective="infomax_kl", steps=5, learning_rate=0.5, kl_weight=0.25, **shared)


def test_the_baseline_of_a_trial_is_that_of_its_training() -> None:
    space = make({"subject_baseline": {"choices": ["none", "median"]}, "window_stride": {"low": 1, "high": 2}})
    training, adaptation = space.configs({"subject_baseline": "none", "window_stride": 2})
    assert (training.subject_baseline, adaptation.subject_baseline, training.window.stride) == ("none", "none", 2)


def test_a_dimension_matters_where_another_one_that_is_searched_makes_it_so() -> None:
    """Of the method and of what all methods share."""
    deciding = {
        "objective": {"choices": ["none", "infomax_kl"]},
        "protocol": {"choices": ["per_subject", "online"]},
        "readout": {"choices": ["peak_window", "best_window"]},
    }
    rest = {name: {"choices": [1, 2]} for name in ("memory", "windows_per_clip", "kl_weight")}
    space = make(deciding | rest, adapt=adapt_config(readout="peak_window"))
    assert {dimension.name for dimension in space.dimensions} == {*deciding, *rest}
    for name, setting in (("memory", "protocol"), ("windows_per_clip", "readout"), ("kl_weight", "objective")):
        left = {key: value for key, value in deciding.items() if key != setting}
        with pytest.raises(ValueError, match=rf"^space\.{name} changes nothing in any trial"):
            make(left | {name: rest[name]}, adapt=adapt_config(readout="peak_window"))


def test_what_cannot_matter_is_not_chosen() -> None:
    for values in chosen(make(), trials=30):
        tuning = {"steps", "learning_rate", "kl_weight"} if values["objective"] == "infomax_kl" else set()
        assert set(values) == {"objective", "window_length", *tuning}
        assert values["window_length"] in range(4, 33, 4)


def test_a_seed_fixes_the_values_however_often_the_study_is_opened() -> None:
    whole = chosen(make(), trials=16)
    assert chosen(make(), trials=16, sessions=(3, 12, 13)) == whole
    assert chosen(make(), trials=16, seed=1) != whole
    assert len({tuple(sorted(values.items())) for values in whole[:10]}) > 5


def test_good_trials_are_followed() -> None:
    lengths = [values["window_length"] for values in chosen(make(), trials=40)]
    assert sum(lengths[25:]) / 15 > sum(lengths[:10]) / 10 + 4


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, r"^space is empty: search at least one of objective, protocol"),
        ({"steps": None}, r"^space is empty"),
        ({"window": {"low": 1, "high": 2}}, r"^space\.window: unknown dimension; did you mean 'window_length'\?$"),
        ({"seed": {"low": 1, "high": 2}}, r"^space\.seed: unknown dimension; "),
        ({"steps": [5, 10]}, r"^space\.steps=\[5, 10\]: expected \{low: …, high: …\}, .* or \{choices: \[…\]\}$"),
        ({"steps": {"high": 5}}, r"^space\.steps\.low has no value; a range is written \{low"),
        ({"steps": {"low": 5, "higth": 8}}, r"^space\.steps\.higth: unknown key; did you mean 'high'\?$"),
        ({"steps": {"low": 5, "high": 5}}, r"^space\.steps: low=5 and high=5; expected low below high$"),
        ({"steps": {"low": 5, "high": 8.5}}, r"^space\.steps\.high=8\.5: should be an integer$"),
        ({"steps": {"low": -1, "high": 8}}, r"^space\.steps\.low=-1: should be greater than or equal to 0$"),
        (
            {"steps": {"low": 1, "high": 8, "step": 3}},
            r"^space\.steps\.step=3: expected a positive number that divides 8 − 1",
        ),
        ({"steps": {"low": 1, "high": 8, "choices": [1]}}, r"^space\.steps=\{.*\}: expected \{low"),
        ({"steps": {"choices": [1, 2], "step": 2}}, r"^space\.steps\.step belongs to a range; a list of choices takes"),
        ({"steps": {"choices": [5]}}, r"^space\.steps\.choices=\[5\]: expected a list of at least two values$"),
        ({"steps": {"choices": [5, 5.0]}}, r"^space\.steps\.choices=\[5, 5\.0\]: 5 is listed twice$"),
        (
            {"learning_rate": {"low": 0.0, "high": 1, "log": True}},
            r"^space\.learning_rate\.low=0\.0: should be greater than 0$",
        ),
        (
            {"kl_weight": {"low": 0, "high": 1, "log": True}},
            r"^space\.kl_weight: low=0\.0, step=None; a logarithmic ra",
        ),
        (
            {"window_length": {"low": 0, "high": 4}},
            r"^space\.window_length\.low=0: should be greater than 0$",
        ),
        ({"objective": {"low": 0, "high": 1}}, r"^space\.objective=.*: expected \{choices: \[…\]\}, each one of none,"),
        (
            {"objective": {"choices": ["none", "max"]}},
            r"^space\.objective\.choices='max': should be one of none, entropy",
        ),
        (
            {"per_au_context": {"choices": [True, "no"]}},
            r"^space\.per_au_context\.choices='no': should be true or false",
        ),
    ],
)
def test_a_wrong_space_is_explained(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(space, adapt=TUNED)


@pytest.mark.parametrize(
    ("space", "adapt", "message"),
    [
        (
            {"steps": {"choices": [5, 10]}},
            adapt_config(),
            r"^space\.steps changes nothing in any trial \(objective none, protocol per_subject, "
            r"readout best_window\); search objective too, or omit it$",
        ),
        ({"memory": {"choices": [8, 16]}}, TUNED, r"^space\.memory changes nothing in any trial"),
        ({"kl_weight": {"low": 0.1, "high": 1}}, TUNED, r"^space\.kl_weight changes nothing in any trial"),
        (
            {"steps": {"choices": [5, 10]}},
            ZERO_SHOT,
            r"^method 'zero_shot': a sweep searches the settings of clip_autt; set adapt=clip_au$",
        ),
        ({"steps": {"choices": [5, 10]}}, adapt_config(window=WindowSpec()), r"^adapt\.window: expected null"),
    ],
)
def test_what_would_be_searched_for_nothing_is_refused(space: dict[str, Any], adapt: AdaptConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(space, adapt=adapt)
