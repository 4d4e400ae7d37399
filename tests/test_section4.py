"""Mistakes seen in public code for this task, one test each: this code does not make them."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipautt.adaptation.driver import SubjectResult, adapt
from clipautt.adaptation.predictions import Prediction
from clipautt.backbones.text_tower import stock_tokenizer
from clipautt.clips import Clip
from clipautt.datasets.biovid import BioVid
from clipautt.features.clip_features import ClipFeatures
from clipautt.manifest import ManifestError, read_manifest
from clipautt.model import training
from clipautt.model.network import TEMPERATURE, initial_model
from clipautt.model.training import Example, TrainConfig, fit
from clipautt.model.windows import entropy
from clipautt.video.decoding import Sampling
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameSpec
from clipautt.video.reader_process import read_frames
from tests.support.configs import adapt_config, changed
from tests.support.fakes import (
    CONTEXT,
    FEATURE_DIM,
    PHRASES,
    fake_clip,
    fake_clips,
    fake_label,
    fake_source,
    numbered_frames,
    read_number,
    write_video,
)
from tests.support.trees import biovid_frames, pictures

TUNED = adapt_config(objective="entropy", steps=2, learning_rate=0.1)


def predictions_of(results: dict[str, SubjectResult]) -> dict[str, Prediction]:
    return {p.clip_id: p for result in results.values() for p in result.predictions}


def test_mistake_1_au_words_are_kept_at_test_time() -> None:
    """Under one context for all prompts, only the words can tell the AUs apart."""
    source = fake_source()
    result = adapt(source, fake_clips(subjects=1), changed(TUNED, per_au_context=False))["s0"]
    context = result.state.context
    assert all(torch.equal(row, context[0]) for row in context)
    features = source.backbone.encode_prompts(source.prompts, context)
    distances = torch.cdist(features, features) + torch.eye(len(PHRASES)) * 9
    assert distances.min() > 0.05
    tokenizer = stock_tokenizer()
    for phrase, ids in zip(PHRASES, source.prompts.tokens.tolist(), strict=True):
        words = tokenizer.encode(phrase)
        assert ids[: 5 + len(words) + 1] == [49406, *tokenizer.encode(CONTEXT), *words, 49407]


def test_mistake_2_text_is_handled_alike_in_training_and_at_test_time() -> None:
    """Words with spaces, read out at the end of the real sequence, not normalized before the adapter: in both."""
    source = fake_source()
    texts = [f"{CONTEXT} {phrase}" for phrase in PHRASES]
    assert list(source.prompts.texts) == texts and not any("_" in text for text in texts)
    with torch.no_grad():
        stock = source.backbone.model.encode_text(stock_tokenizer()(texts))  # padded to 77 tokens
    torch.testing.assert_close(source.text_features, stock, atol=1e-5, rtol=0)
    assert (stock.norm(dim=-1) - 1).abs().min() > 0.1
    assert torch.equal(source.au_embeddings_of(source.context), source.model.au_embeddings(source.text_features))
    windows = torch.randn(2, 6, FEATURE_DIM)
    in_training = source.model(windows, source.text_features)
    at_test_time = source.logits(source.model.video_embedding(windows), source.au_embeddings_of(source.context))
    assert torch.equal(in_training, at_test_time)


def test_mistake_3_nothing_is_carried_over_by_accident_and_no_clip_is_dropped() -> None:
    source, many = fake_source(), fake_clips(subjects=2, per_subject=21)[:41]  # one more than a batch of 40
    for protocol in ("per_video", "online", "per_subject"):
        predicted = predictions_of(adapt(source, many, adapt_config(protocol=protocol)))
        assert sorted(predicted) == sorted(clip.clip_id for clip in many)
    clips = fake_clips(subjects=2)
    config = changed(TUNED, protocol="per_video")
    per_video = predictions_of(adapt(source, clips, config))
    for clip in clips[::3]:
        alone = predictions_of(adapt(source, [clip], config))
        expected = per_video[clip.clip_id].probabilities
        torch.testing.assert_close(alone[clip.clip_id].probabilities, expected, atol=1e-5, rtol=0)
    for protocol in ("online", "per_subject"):
        config = changed(TUNED, protocol=protocol)
        second = [clip for clip in clips if clip.subject_id == "s1"]
        together, alone_too = adapt(source, clips, config)["s1"], adapt(source, second, config)["s1"]
        torch.testing.assert_close(together.state.context, alone_too.state.context, atol=1e-5, rtol=0)


@pytest.mark.parametrize("protocol", ["per_video", "online", "per_subject"])
def test_mistake_4_the_prediction_is_made_after_the_update(protocol: str) -> None:
    source = fake_source()
    result = adapt(source, fake_clips(subjects=1), changed(TUNED, protocol=protocol))["s0"]
    last = result.predictions[-1]
    clip = next(clip for clip in fake_clips(subjects=1) if clip.clip_id == last.clip_id)
    window = source.views(clip).embeddings[round(last.window_start_seconds * 12.5)]
    after = F.softmax(source.logits(window[None], result.state.au_embeddings)[0], -1)
    before = F.softmax(source.logits(window[None])[0], -1)
    torch.testing.assert_close(last.probabilities, after)
    assert (after - before).abs().max() > 1e-3


def test_mistake_5_no_target_label_chooses_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last epoch is kept; nothing is measured while fitting. No argument of `adapt` could carry a label."""

    def refuse(*_: object) -> None:
        raise AssertionError("something was measured while fitting")

    monkeypatch.setattr(training, "validate", refuse)
    monkeypatch.setattr(training, "score", refuse)
    source, examples = fake_source(), [Example(clip, fake_label(clip)) for clip in fake_clips()]
    epochs: list[int] = []
    snapshots: list[torch.Tensor] = []
    model = initial_model(FEATURE_DIM, len(PHRASES), 2, seed=0)

    def remember(epoch: int, _: float) -> None:
        epochs.append(epoch)
        snapshots.append(model.temporal.weight.detach().clone())

    fit(model, source.text_features, examples, TrainConfig(window=source.window, epochs=3), on_epoch=remember)
    assert epochs == [0, 1, 2] and torch.equal(model.temporal.weight, snapshots[-1])
    assert not torch.equal(snapshots[0], snapshots[-1])
    assert list(inspect.signature(fit).parameters)[:4] == ["model", "text_features", "examples", "config"]
    assert list(inspect.signature(adapt).parameters) == ["source", "clips", "config", "tuning"]
    known = {"clip_id", "subject_id", "features", "times", "face_found", "notes", "min_share", "other_faces"}
    known |= {"boxes", "brightness", "face_sides", "turned", "rendered"}
    assert set(ClipFeatures.__dataclass_fields__) == known


def test_mistake_6_evaluation_has_no_random_crops_and_no_window_wraps_around() -> None:
    source, clip = fake_source(), fake_clip(num_frames=30)
    starts = source.views(clip).starts
    assert starts.tolist() == list(range(25))  # every window, each inside the clip
    end_changed = replace(clip, features=torch.cat([clip.features[:-1], clip.features[-1:] + 50]))
    same = (source.views(clip).embeddings == source.views(end_changed).embeddings).all(-1)
    assert same.tolist() == [True] * 24 + [False]
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        results.append(adapt(source, [clip], changed(TUNED, seed=seed))["s0"].predictions[0])
    assert torch.equal(results[0].probabilities, results[1].probabilities)
    assert results[0].window_start_seconds == results[1].window_start_seconds


def test_mistake_7_frames_come_in_order_of_time_and_no_first_row_is_lost(tmp_path: Path) -> None:
    """As strings, frame 10 would come before frame 2; without a header, the first clip would become one."""
    path = write_video(tmp_path / "clip.mp4", numbered_frames(120), options={"bf": "2"})
    spec = FrameSpec(Preprocessing(64, (0, 0, 0), (1, 1, 1), "area"), Sampling(None))
    for source in (path, pictures(tmp_path / "clip", [f"image_{n}.png" for n in range(120)], decodable=True)):
        decoded = read_frames(Clip("c", "s", str(source), "target"), spec)
        assert [read_number(frame) for frame in decoded.frames] == list(range(120))
        assert (np.diff(decoded.times) > 0).all()
    biovid_frames(tmp_path / "biovid")  # its list of crops has no header
    reading = BioVid(str(tmp_path / "biovid"), strict=False, validation_subjects=1).read()
    first = (tmp_path / "biovid" / "labels.txt").read_text().split("/")[1]
    assert first in {clip.clip_id for clip in reading.clips}
    rows = ["a,s1,a.mp4,pain,source_train", "b,s2,b.mp4,neutral,target"]
    (tmp_path / "headless.csv").write_text("\n".join(rows))
    with pytest.raises(ManifestError, match="missing columns clip_id, subject_id, source, split"):
        read_manifest(tmp_path / "headless.csv")
    (tmp_path / "full.csv").write_text("\n".join(["clip_id,subject_id,source,label,split", *rows]))
    assert [clip.clip_id for clip in read_manifest(tmp_path / "full.csv").clips] == ["a", "b"]


@pytest.mark.parametrize(("one", "other"), [("source_train", "target"), ("source_val", "target")])
def test_mistake_8_source_and_target_subjects_do_not_overlap(tmp_path: Path, one: str, other: str) -> None:
    rows = ["clip_id,subject_id,source,label,split", f"a,01,a.mp4,pain,{one}", f"b,01,b.mp4,pain,{other}"]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    with pytest.raises(ManifestError, match=f"subject '01' is in {one} and {other}; a subject belongs to one split"):
        read_manifest(tmp_path / "m.csv")


def test_mistake_9_temperature_scales_window_entropy() -> None:
    """Clips are found on which leaving τ out would select another window; the one under τ = 5 is taken."""
    source = fake_source()
    assert TEMPERATURE == 5.0
    differing = 0
    for clip in fake_clips(subjects=10):
        embeddings = source.views(clip).embeddings
        cosines = embeddings @ source.au_embeddings.T
        with_temperature, without = (entropy(source.model.classifier(t * cosines)) for t in (5.0, 1.0))
        chosen = adapt(source, [clip], adapt_config())[clip.subject_id].predictions[0]
        assert chosen.window_start_seconds == pytest.approx(int(with_temperature.argmin()) / 12.5)
        differing += int(with_temperature.argmin() != without.argmin())
    assert differing >= 3
