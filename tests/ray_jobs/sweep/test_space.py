"""The search space: what a YAML file may say, what trials choose, and what a seed fixes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna
import pytest

from clipautt.adaptation.method import AdaptConfig, find_method, method_names
from clipautt.adaptation.methods.t3a import T3A
from clipautt.adaptation.methods.tda import TDA
from clipautt.model.training import TrainConfig
from clipautt.model.windows import WindowSpec
from clipautt.video.augmentation import Augmentation
from ray_jobs.platform.configuration import compose, flatten, instantiate, resolved
from ray_jobs.sweep.dimensions import searchable
from ray_jobs.sweep.space import Dimension, SearchSpace, make_space
from ray_jobs.sweep.studies.samplers import make_sampler
from tests.support.configs import ZERO_SHOT, adapt_config

TUNED = adapt_config(objective="infomax")
METHOD = {
    "learning_rate": {"low": 0.03, "high": 1.0, "log": True},
    "objective": {"choices": ["none", "infomax_kl"]},
    "steps": {"choices": [5, 10]},
    "kl_weight": {"low": 0, "high": 1},
}
LENGTH = {"window": {"length": {"low": 4, "high": 32, "step": 4}}}
SPACE = {"train": LENGTH, "adapt": {"readout": None, "method": METHOD}}


def make(
    space: dict[str, Any] | None = None, *, adapt: AdaptConfig | None = None, train: TrainConfig | None = None
) -> SearchSpace:
    return make_space(SPACE if space is None else space, train=train or TrainConfig(), adapt=adapt or adapt_config())


def method(**dimensions: Any) -> dict[str, Any]:
    return {"adapt": {"method": dimensions}}


def chosen(space: SearchSpace, *, trials: int, seed: int = 0, sessions: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Values of a study's trials, scored by window length; at each number in `sessions` it is opened anew."""
    storage = optuna.storages.InMemoryStorage()
    for _ in range(trials):
        done = 0 if not storage.get_all_studies() else len(storage.get_all_trials(0))
        if done == 0 or done in sessions:
            study = optuna.create_study(
                storage=storage,
                study_name="one",
                sampler=make_sampler("tpe", seed),
                direction="maximize",
                load_if_exists=True,
            )
        trial = study.ask()
        assert space(trial) == trial.params
        study.tell(
            trial, float(trial.params["train.window.length"]) + trial.params.get("adapt.method.learning_rate", 0.0)
        )
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize(
    ("preset", "first", "number"),
    [
        ("tuning", "adapt.method.objective", 13),
        ("training", "train.window.length", 6),
        ("window", "train.window.length", 1),
    ],
)
def test_the_presets_are_valid_spaces(preset: str, first: str, number: int) -> None:
    cfg = compose("sweep", ["manifest=m.parquet", f"sweep={preset}"])
    space = make_space(resolved(cfg)["space"], train=instantiate(cfg.train), adapt=instantiate(cfg.adapt))
    assert (space.dimensions[0].name, len(space.dimensions)) == (first, number)


def test_the_settings_name_everything_that_may_be_searched() -> None:
    """So that words such as `space.train.window.hop={…}` and `~space.adapt.method.steps` go with every preset."""
    cfg = compose("sweep", ["manifest=m.parquet", "sweep=window", "space.train.window.length=null"])
    tree = flatten(resolved(cfg)["space"])
    assert set(tree) == {key for name in method_names() for key in searchable(find_method(name))}
    assert set(tree.values()) == {None}


def test_values_become_configurations() -> None:
    shared = {"subject_baseline": "mean", "readout": "mean_windows"}
    training, adaptation = make(adapt=adapt_config(**shared)).configs(
        {
            "train.window.length": 12,
            "train.learning_rate": 0.01,
            "adapt.prior": 0.2,
            "adapt.method.objective": "infomax_kl",
            "adapt.method.learning_rate": 0.5,
            "number": 7,
        }
    )
    assert training == TrainConfig(window=WindowSpec(12), learning_rate=0.01, subject_baseline="mean")
    assert adaptation == adapt_config(objective="infomax_kl", learning_rate=0.5, prior=0.2, **shared)


def test_the_baseline_and_augmentation_set_what_belongs_to_them() -> None:
    """Training has the baseline of adaptation, and augmented clips are encoded anew."""
    baseline = {"choices": ["none", "median"]}
    space = make(
        {"adapt": {"subject_baseline": baseline}, "train": {"augmentation": {"flip": {"choices": [0.0, 0.5]}}}}
    )
    training, adaptation = space.configs({"adapt.subject_baseline": "none", "train.augmentation.flip": 0.5})
    assert (training.subject_baseline, adaptation.subject_baseline) == ("none", "none")
    assert (training.features, training.augmentation) == ("augmented", Augmentation(flip=0.5))
    assert space.configs({"train.augmentation.flip": 0.0})[0].features == "cached"


def test_a_dotted_key_is_a_nested_one() -> None:
    dotted = {"train.window.length": LENGTH["window"]["length"], "adapt": {"method.steps": {"choices": [5, 10]}}}
    assert make(dotted, adapt=TUNED) == make({"train": LENGTH, **method(steps={"choices": [5, 10]})}, adapt=TUNED)


def test_a_dimension_matters_where_another_one_that_is_searched_makes_it_so() -> None:
    """Of the method and of what all methods share."""
    shared = {
        "protocol": {"choices": ["per_subject", "online"]},
        "readout": {"choices": ["peak_window", "best_window"]},
        "collapse_share": {"choices": [0.2, 2.0]},
    }
    own = {"objective": METHOD["objective"], "tune": {"choices": ["feature", "context"]}}
    own |= {name: {"choices": [1, 2]} for name in ("memory", "windows_per_clip", "kl_weight", "steps", "max_drift")}
    own["precision"] = {"choices": ["fp32", "bf16"]}
    base = adapt_config(readout="peak_window", subject_baseline="median")
    space = make({"adapt": shared | {"method": own}}, adapt=base)
    assert {dimension.name for dimension in space.dimensions} == {
        *(f"adapt.{name}" for name in shared),
        *(f"adapt.method.{name}" for name in own),
    }
    for name, setting, words in (
        ("method.memory", "protocol", "adapt.protocol is online"),
        ("method.windows_per_clip", "readout", "adapt.readout is best_window"),
        ("method.kl_weight", "method.objective", "prompts are tuned: .* and if adapt.method.objective is infomax_kl"),
        ("method.max_drift", "method.objective", "prompts are tuned: adapt.method.objective is not none and "),
        ("collapse_share", "method.objective", "the method adapts or adapt.prior is estimate, and "),
    ):
        dotted = {
            f"adapt.{key}": value for key, value in {**shared, **{f"method.{k}": v for k, v in own.items()}}.items()
        }
        kept = {name, "protocol", "readout", "method.objective"} - {setting}
        with pytest.raises(ValueError, match=rf"^space\.adapt\.{name} changes nothing in any trial: it .*{words}"):
            make({f"adapt.{key}": dotted[f"adapt.{key}"] for key in kept}, adapt=base)


def test_what_cannot_matter_is_not_chosen() -> None:
    tuning = {"adapt.method.steps", "adapt.method.learning_rate", "adapt.method.kl_weight"}
    for values in chosen(make(), trials=30):
        own = tuning if values["adapt.method.objective"] == "infomax_kl" else set()
        assert set(values) == {"adapt.method.objective", "train.window.length", *own}
        assert values["train.window.length"] in range(4, 33, 4)


def test_a_dimension_is_chosen_only_where_all_of_its_values_are_valid() -> None:
    space = make(
        {
            "adapt": {
                "prior": {"choices": [None, "estimate", 0.2]},
                "protocol": {"choices": ["online", "per_subject"]},
            }
        },
        adapt=adapt_config(subject_baseline="median"),
    )
    assert space.grid() == [
        {"adapt.protocol": "online"},
        *({"adapt.protocol": "per_subject", "adapt.prior": prior} for prior in (None, "estimate", 0.2)),
    ]
    prior = space.dimensions[1]
    assert (prior.dtype, [prior.cell(value) for value in prior.choices]) == ("object", ["null", "estimate", "0.2"])
    with pytest.raises(
        ValueError, match=r"^space\.adapt\.prior: some of its values are valid in no trial \(prior='est"
    ):
        make({"adapt": {"prior": {"choices": ["estimate", 0.2]}}}, adapt=adapt_config(protocol="online"))


def test_a_grid_has_every_combination_once() -> None:
    space = make(
        {
            "train": {"window": {"length": {"low": 4, "high": 12, "step": 4}}},
            **method(objective={"choices": ["none", "infomax"]}, learning_rate={"low": 0.1, "high": 0.5, "step": 0.2}),
        }
    )
    lengths = (4, 8, 12)
    assert space.grid() == [
        *({"adapt.method.objective": "none", "train.window.length": length} for length in lengths),
        *(
            {"adapt.method.objective": "infomax", "train.window.length": length, "adapt.method.learning_rate": rate}
            for length in lengths
            for rate in (0.1, 0.3, 0.5)
        ),
    ]
    with pytest.raises(
        ValueError, match=r"^space\.adapt\.method\.learning_rate has infinitely many values between 0\.03"
    ):
        make().grid()
    with pytest.raises(
        ValueError,
        match=r"^space has more than 100000 combinations \(train\.epochs 1000, train\.batch_size 1000 values",
    ):
        make({"train": {name: {"low": 1, "high": 1000} for name in ("epochs", "batch_size")}}).grid()


@pytest.mark.parametrize(
    ("adapt", "own", "names"),
    [
        (AdaptConfig(T3A()), {"capacity": {"low": 0, "high": 40}, "update": {"choices": ["before", "after"]}}, 2),
        (AdaptConfig(TDA()), {"on": {"choices": ["frames", "windows"]}, "alpha": {"low": 0.5, "high": 4}}, 2),
    ],
)
def test_the_settings_of_other_methods(adapt: AdaptConfig, own: dict[str, Any], names: int) -> None:
    space = make(method(**own), adapt=adapt)
    assert len(space.dimensions) == names
    assert space.configs({"adapt.method.update": "after"})[1] == replace(
        adapt, method=replace(adapt.method, update="after")
    )


def test_training_matters_where_the_trained_model_is_used() -> None:
    with pytest.raises(
        ValueError, match=r"^space\.train\.window\.length changes nothing .* adapt\.method\.on is windows; "
    ):
        make({"train": LENGTH}, adapt=AdaptConfig(TDA()))
    space = make({"train": LENGTH, **method(on={"choices": ["frames", "windows"]})}, adapt=AdaptConfig(TDA()))
    assert [set(values) for values in space.grid()][:2] == [
        {"adapt.method.on"},
        {"adapt.method.on", "train.window.length"},
    ]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("train.window.length", "window length"),
        ("train.learning_rate", "training learning rate"),
        ("train.augmentation.flip", "augmentation flip"),
        ("adapt.subject_baseline", "subject baseline"),
        ("adapt.method.kl_weight", "kl weight"),
    ],
)
def test_labels(name: str, label: str) -> None:
    assert Dimension(name, (1, 2)).label == label


def test_a_seed_fixes_the_values_however_often_the_study_is_opened() -> None:
    whole = chosen(make(), trials=16)
    assert chosen(make(), trials=16, sessions=(3, 12, 13)) == whole
    assert chosen(make(), trials=16, seed=1) != whole
    assert len({tuple(sorted(values.items())) for values in whole[:10]}) > 5


def test_good_trials_are_followed() -> None:
    lengths = [values["train.window.length"] for values in chosen(make(), trials=60)]
    assert sum(lengths[40:]) / 20 > 23, "by chance they are 18 on average"


STEPS, RATE = "adapt.method.steps", "adapt.method.learning_rate"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, r"^space is empty: search at least one of space\.train\.window\.length, "),
        ({STEPS: None}, r"^space is empty"),
        (
            {"window_length": {"low": 1, "high": 2}},
            r"unknown dimension; did you mean 'space\.train\.window\.length'\?$",
        ),
        (
            {"learning_rate": {"low": 1, "high": 2}},
            r"did you mean 'space\.train\.learning_rate' or 'space\.adapt\.method\.learning_rate'\?$",
        ),
        ({"window_lenght": None}, r"^space\.window_lenght: unknown dimension; did you mean"),
        ({"train.seed": {"low": 1, "high": 2}}, r"^space\.train\.seed is not searched: the best of several seeds "),
        ({"train.subject_baseline": {"choices": ["none", "mean"]}}, r" is not searched: .* space\.adapt\.subject_base"),
        (
            {"train.features": {"choices": ["cached", "streamed"]}},
            r"^space\.train\.features is not searched: trials take stored",
        ),
        (
            {"adapt.window": {"choices": [None, 3]}},
            r"^space\.adapt\.window is not searched: .* space\.train\.window\.leng",
        ),
        ({"train": {"window": {"low": 4, "high": 8}}}, r"^space\.train\.window holds several settings; search one of "),
        ({"train": 4}, r"^space\.train holds several settings; search one of space\.train\.context, "),
        (
            {"adapt": {"method": {"choices": ["t3a", "tda"]}}},
            r"^space\.adapt\.method: .* start one per method, with adapt=",
        ),
        (
            method(steps={"choices": [5, 10]}, capacity={"choices": [5, 10]}),
            r"^space\.adapt\.method\.capacity: no setting of method 'clip_autt', but of t3a; choose that with adapt=…"
            r", or omit what is searched: '~space\.adapt\.method\.capacity'$",
        ),
        (
            {STEPS: {"low": 1, "high": 2}, **method(steps={"low": 1, "high": 2})},
            r"^space\.adapt\.method\.steps is given twice",
        ),
        (
            {STEPS: [5, 10]},
            r"^space\.adapt\.method\.steps=\[5, 10\]: expected \{low: …, high: …\}, .* or \{choices: \[…\]\}$",
        ),
        ({STEPS: {"high": 5}}, r"steps\.low has no value; a range is written \{low"),
        ({STEPS: {"low": 5, "higth": 8}}, r"steps\.higth: unknown key; did you mean 'high'\?$"),
        ({STEPS: {"low": 5, "high": 5}}, r"steps: low=5 and high=5; expected low below high$"),
        ({STEPS: {"low": 5, "high": 8.5}}, r"^space\.adapt\.method\.steps\.high=8\.5: should be an integer$"),
        ({STEPS: {"low": -1, "high": 8}}, r"steps\.low=-1: should be greater than or equal to 0$"),
        ({STEPS: {"low": 1, "high": 8, "step": 3}}, r"steps\.step=3: expected a positive number that divides 8 − 1"),
        ({STEPS: {"low": 1, "high": 8, "step": 0}}, r"steps\.step=0: expected a positive number"),
        ({RATE: {"low": 1, "high": 8, "step": float("nan")}}, r"learning_rate\.step=nan: expected a positive number"),
        ({RATE: {"low": 1, "high": float("inf")}}, r"learning_rate\.high=inf: should be a finite number"),
        ({STEPS: {}}, r"^space\.adapt\.method\.steps=\{\}: expected \{low"),
        (
            {STEPS: {"choices": [1, 2], "low": 2}},
            r"steps\.low belongs to a range; a list of choices takes nothing else: set ",
        ),
        (
            {STEPS: {"choices": [5]}},
            r"^space\.adapt\.method\.steps\.choices=\[5\]: expected a list of at least two values$",
        ),
        ({STEPS: {"choices": [5, 5.0]}}, r"steps\.choices=\[5, 5\.0\]: 5 is listed twice$"),
        ({RATE: {"low": 0.0, "high": 1, "log": True}}, r"learning_rate\.low=0\.0: should be greater than 0$"),
        ({"train.weight_decay": {"low": 0, "high": 1, "log": True}}, r"decay: low=0\.0, step=None; a logarithmic ra"),
        ({RATE: {"low": 0.1, "high": 1, "log": 1}}, r"learning_rate\.log=1: should be true or false$"),
        (
            {"train.window.length": {"low": 0, "high": 4}},
            r"^space\.train\.window\.length\.low=0: should be greater than 0$",
        ),
        (
            method(objective={"low": 0, "high": 1}),
            r"^space\.adapt\.method\.objective=.*: expected \{choices: \[…\]\}, each one of none,",
        ),
        (method(objective={"choices": ["none", "max"]}), r"objective\.choices='max': should be one of none, entropy"),
        (
            {"train.context": {"choices": ["a face with", None]}},
            r"^space\.train\.context\.choices=None: should be text$",
        ),
        (method(per_au_context={"choices": [True, "no"]}), r"per_au_context\.choices='no': should be true or false"),
        (
            {"adapt.prior": {"low": "estimate", "high": 0.5}},
            r"^space\.adapt\.prior\.low='estimate': should be a number$",
        ),
    ],
)
def test_a_wrong_space_is_explained(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(space, adapt=TUNED)


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        (
            ZERO_SHOT,
            r"^adapt\.method: 'zero_shot' has no settings to search; set adapt=clip_au, adapt=t3a or adapt=tda$",
        ),
        (adapt_config(window=WindowSpec()), r"^adapt\.window=\{'length': 16, .*\}: expected null; trials adapt with"),
    ],
)
def test_settings_that_leave_nothing_to_search_are_refused(adapt: AdaptConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make({"train": LENGTH}, adapt=adapt)
