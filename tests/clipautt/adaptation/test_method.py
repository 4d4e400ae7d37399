"""One way to personalize as settings: what is refused, what a row is called, and what goes into a file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from clipautt.adaptation.method import AdaptConfig, TuningConfig, changed_settings, fit_in_turn
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.methods.t3a import T3A
from clipautt.adaptation.methods.tda import TDA
from clipautt.model.windows import WindowSpec
from clipautt.settings import one_line
from tests.support.configs import ZERO_SHOT, adapt_config, changed
from tests.support.fakes import fake_clips

TUNED = adapt_config(objective="entropy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "batch"}, "adapt.protocol='batch': should be one of per_video, online, per_subject"),
        (
            {"readout": "last"},
            "adapt.readout='last': should be one of best_window, mean_windows, peak_window, whole_clip",
        ),
        ({"subject_baseline": "mode"}, "adapt.subject_baseline='mode': should be one of none, mean, median"),
        ({"collapse_share": -0.1}, "adapt.collapse_share=-0.1: should be greater than or equal to 0"),
        ({"collapse_share": float("nan")}, "adapt.collapse_share=nan: should be a finite number"),
        ({"prior": 0.0}, "adapt.prior=0.0: should be greater than or equal to 0.000001 or estimate"),
        ({"prior": 1}, "adapt.prior=1: should be less than or equal to 0.999999 or estimate"),
        ({"prior": "guess"}, "adapt.prior='guess': should be a number or estimate"),
        ({"seed": 1.5}, "adapt.seed=1.5: should be an integer"),
        ({"steps": 3}, "unknown key 'adapt.steps'"),
        *(
            (
                {"prior": "estimate", "protocol": protocol},
                f"prior='estimate' with protocol='{protocol}'; the estimate needs all clips of a subject: take "
                "protocol=per_subject, or give a number",
            )
            for protocol in ("per_video", "online")
        ),
    ],
)
def test_shared_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        AdaptConfig(ClipAUTT(), **options)
    assert one_line(error.value, "adapt") == message


def test_a_method_must_be_one() -> None:
    for wrong in ("tent", {"name": "clip_autt"}):
        with pytest.raises(ValidationError) as error:
            AdaptConfig(method=wrong)  # type: ignore[arg-type]
        assert one_line(error.value, "adapt") == f"adapt.method={wrong!r}: should be an instance of Method"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_mb": 0}, "tuning.memory_mb=0: should be greater than 0"),
        ({"batch_size": 0}, "tuning.batch_size=0: should be greater than 0"),
        ({"compile": "max"}, "tuning.compile='max': should be one of none, default, cuda_graphs"),
    ],
)
def test_how_to_compute_is_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        TuningConfig(**options)
    assert one_line(error.value, "tuning") == message


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (adapt_config(), "CLIP-AU, best window"),
        (adapt_config(readout="whole_clip", protocol="online", seed=3), "CLIP-AU, whole clip"),
        (adapt_config(collapse_share=1.1), "CLIP-AU, best window"),
        (changed(TUNED, collapse_share=1.1), "CLIP-AUTT entropy, per subject, collapse share 1.1"),
        (
            changed(TUNED, subject_baseline="median", prior=0.05, steps=3, window=WindowSpec(24, stride=2, hop=3)),
            "CLIP-AUTT entropy, per subject, median baseline, windows of 24, stride 2, hop 3, prior 0.05, 3 steps of 1",
        ),
        (adapt_config(prior="estimate"), "CLIP-AU, best window, estimated prior"),
        (AdaptConfig(T3A(capacity=5), "online", prior=0.2), "T3A, online, prior 0.2, capacity 5"),
        (AdaptConfig(TDA(), window=WindowSpec(24)), "TDA, per subject"),
        (AdaptConfig(TDA(on="windows"), window=WindowSpec(24)), "TDA, per subject, windows of 24, on windows"),
    ],
)
def test_a_name_says_what_it_does_and_what_counts_and_is_not_the_default(config: AdaptConfig, name: str) -> None:
    assert config.name == name


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"protocol": "per_video", "objective": "entropy"}, False),
        ({"protocol": "per_subject"}, False),
        ({"protocol": "per_subject", "objective": "entropy"}, True),
        ({"protocol": "online", "subject_baseline": "median"}, True),
        ({"protocol": "per_subject", "prior": 0.2}, False),
        ({"protocol": "per_subject", "prior": "estimate"}, True),
    ],
)
def test_transductive_is_what_depends_on_other_clips(options: dict[str, Any], expected: bool) -> None:
    assert adapt_config(**options).transductive is expected


def test_exact_is_the_same_with_the_method_that_is_approximated() -> None:
    config = changed(TUNED, tune="feature", protocol="online", prior=0.2)
    assert config.exact == changed(config, tune="context")
    assert TUNED.exact is ZERO_SHOT.exact is AdaptConfig(TDA()).exact is None


@pytest.mark.parametrize(
    "config",
    [
        adapt_config(),
        changed(
            TUNED,
            tune="feature",
            steps=3,
            learning_rate=2,
            per_au_context=False,
            protocol="online",
            window=None,
            seed=4,
        ),
        changed(TUNED, window=WindowSpec(5, 2, 3), prior=0.2, readout="peak_window", subject_baseline="mean"),
        adapt_config(prior="estimate", collapse_share=1.1),
        ZERO_SHOT,
        AdaptConfig(TDA(on="windows", alpha=1, negative_capacity=0), "per_video"),
        AdaptConfig(T3A(update="after")),
    ],
    ids=lambda config: config.name,
)
def test_settings_come_back_from_a_file(config: AdaptConfig) -> None:
    facts = json.loads(json.dumps(config.facts))
    assert facts["method"]["name"] == config.method.name
    found = AdaptConfig.from_facts(facts)
    assert found == config and type(found.method) is type(config.method) and hash(found) == hash(config)


def test_settings_of_a_file_that_do_not_fit_are_refused() -> None:
    facts = TUNED.facts
    with pytest.raises(ValueError, match=r"method 'tent' is unknown; known methods are clip_autt, "):
        AdaptConfig.from_facts(facts | {"method": {"name": "tent"}})
    with pytest.raises(ValueError, match="relinearise"):
        AdaptConfig.from_facts(facts | {"method": facts["method"] | {"relinearise": 3}})


def test_changed_settings_are_in_words() -> None:
    assert changed_settings(TDA()) == ()
    assert changed_settings(replace(TDA(), negative_capacity=0, on="windows")) == ("on windows", "negative capacity 0")


def test_fit_in_turn_takes_a_step_per_clip_in_the_order_of_their_ids() -> None:
    class Steps:
        def step(self, state: Any, session: Any, clip: Any) -> tuple[None, Any]:
            return None, (*state, clip.clip_id)

    clips = fake_clips(subjects=1, per_subject=3)
    assert fit_in_turn(Steps(), (), None, clips[::-1]) == ("s0c0", "s0c1", "s0c2")  # type: ignore[arg-type]


def test_the_class_of_a_method_is_not_a_method() -> None:
    with pytest.raises(ValidationError) as caught:
        AdaptConfig(T3A)  # type: ignore[arg-type]
    assert one_line(caught.value) == "method=T3A; give an instance, such as T3A()"
