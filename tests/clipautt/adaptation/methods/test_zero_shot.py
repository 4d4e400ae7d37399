"""Zero-shot CLIP, and what it refuses to do: adapt."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.method import AdaptConfig, Method, Session
from clipautt.adaptation.methods.zero_shot import ZeroShot, clip_vector
from clipautt.model.windows import WindowSpec
from tests.support.configs import ZERO_SHOT, changed
from tests.support.fakes import fake_clip, fake_clips, fake_source


def test_zero_shot_is_the_cosine_with_the_class_texts() -> None:
    source, clip = fake_source(), fake_clip()
    prediction = adapt(source, [clip], ZERO_SHOT)["s0"].predictions[0]
    mean = F.normalize(F.normalize(clip.features, dim=-1).mean(0), dim=0)
    logits = source.backbone.model.logit_scale.exp() * source.class_text() @ mean
    torch.testing.assert_close(prediction.probabilities, F.softmax(logits, dim=-1))
    assert prediction.similarities is None and prediction.window_end_seconds == pytest.approx(19 / 12.5)


@pytest.mark.parametrize("protocol", ["per_video", "online", "per_subject"])
def test_every_protocol_gives_the_same(protocol: str) -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    expected = {p.clip_id: p.probabilities for p in adapt(source, clips, ZERO_SHOT)["s0"].predictions}
    result = adapt(source, clips, changed(ZERO_SHOT, protocol=protocol))["s0"]
    assert result.state is None and not ZERO_SHOT.method.adapts
    for prediction in result.predictions:
        assert prediction.status == "ok" and torch.equal(prediction.probabilities, expected[prediction.clip_id])


def test_a_prior_is_relative_to_equal_shares() -> None:
    """Class descriptions know no shares of a training."""
    source, clip = fake_source(), fake_clip()
    (plain,) = adapt(source, [clip], ZERO_SHOT)["s0"].predictions
    (shifted,) = adapt(source, [clip], changed(ZERO_SHOT, prior=0.2))["s0"].predictions
    negative, positive = plain.probabilities.tolist()
    expected = 0.2 * positive / (0.2 * positive + 0.8 * negative)
    assert float(shifted.probabilities[1]) == pytest.approx(expected, abs=1e-6)


def test_clip_vector_is_a_unit_vector_in_which_every_frame_counts_alike() -> None:
    clip = fake_clip(num_frames=2)
    clip.features[:] = torch.zeros_like(clip.features)
    clip.features[0, 0], clip.features[1, 1] = 100.0, 0.01
    assert clip_vector(clip)[:2].tolist() == pytest.approx([0.5**0.5, 0.5**0.5])


def test_it_says_what_it_is() -> None:
    method = ZeroShot()
    assert isinstance(method, Method) and (method.needs, method.logits_from) == ({"class_text"}, "class_text")
    assert method.fidelity == "variant" and method.deviations
    saved = method.save(None)
    assert not saved.tensors and not saved.facts
    assert method.restore(saved, Session.open(fake_source(), ZERO_SHOT), None) is None  # type: ignore[func-returns-value]


def test_only_settings_that_count_are_in_its_name() -> None:
    assert ZERO_SHOT.name == "zero-shot"
    assert AdaptConfig(ZeroShot(), "online", readout="peak_window", collapse_share=0.5).name == "zero-shot"
    assert changed(ZERO_SHOT, window=WindowSpec(24)).name == "zero-shot"
    assert changed(ZERO_SHOT, prior=0.2).name == "zero-shot, prior 0.2"
    assert changed(ZERO_SHOT, subject_baseline="median").name == "zero-shot, median baseline"
