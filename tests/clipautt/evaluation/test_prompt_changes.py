"""What adaptation did to a subject: literal figures where a hand can compute them, the model's own elsewhere."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from clipautt.action_units import RENDERED, phrases
from clipautt.adaptation.predictions import Prediction
from clipautt.adaptation.readout import Readout
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.evaluation.au_tables.reading import AuTrack
from clipautt.evaluation.prompt_changes import (
    SubjectExplanation,
    TrackWindows,
    au_agreement,
    count_apart,
    enough,
    explain_subject,
    read_explanation,
    read_explanations,
    write_explanation,
)
from clipautt.features.clip_features import ClipFeatures
from clipautt.model.windows import entropy
from tests.support.fakes import PHRASES, fake_clips, fake_source

CODES = ["AU1", "AU2", "AU4", "AU5", "AU6", "AU7"]


def tuned(source: Source, *, seed: int = 0, size: float = 0.5) -> Tensor:
    """AU embeddings under a context that moved at random, through the real text tower: [K, d]."""
    noise = torch.randn(source.context.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return source.au_embeddings_of(source.context + size * source.context.square().mean().sqrt() * noise)


def predict(source: Source, clip: ClipFeatures, adapted: Tensor, window: int | None = None) -> Prediction:
    """The window of lowest entropy, or a given one, under these embeddings."""
    views = source.views(clip)
    logits = source.logits(views.embeddings, adapted)
    best = int(entropy(logits).argmin()) if window is None else window
    start, end = float(views.start_seconds[best]), float(views.end_seconds[best])
    return Prediction(clip.clip_id, clip.subject_id, logits[best].softmax(-1), start, end)


def explain(source: Source, clips: list[ClipFeatures], adapted: Tensor, **options: Any) -> SubjectExplanation:
    each = adapted if adapted.dim() == 3 else [adapted] * len(clips)
    predictions = [predict(source, clip, a) for clip, a in zip(clips, each, strict=True)]
    return explain_subject(source, clips, adapted=adapted, predictions=predictions, **options)


def fake_track(clip: ClipFeatures, *, code: str, intensity: np.ndarray) -> AuTrack:
    """Another tool's track that has one AU, at the frames of a clip."""
    frames = pd.DataFrame({"time_seconds": clip.times, code: intensity})
    present = frames.assign(**{code: (intensity > 1).astype(float)})
    return AuTrack(Path(f"{clip.clip_id}.csv"), "OpenFace 2", frames, present, "", len(frames), 0, 0)


def test_source_prompts_change_nothing_to_the_last_digit() -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    found = explain(source, clips, source.au_embeddings)
    assert found.prompts["moved"].tolist() == [0.0] * 6 and found.prompts["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert (found.similarities["before"] == found.similarities["after"]).all()
    windows = found.windows
    assert not windows["other_window"].any() and (windows["class_before"] == windows["class_after"]).all()
    np.testing.assert_allclose(windows["probability_before"], windows["probability_after"], rtol=1e-6)
    np.testing.assert_allclose(windows["entropy_before"], windows["entropy_after"], atol=1e-6)
    assert found.aus is None and found.facts["prompts_per"] == "subject"


def test_moved_is_one_minus_the_cosine() -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    adapted = source.au_embeddings.clone()
    adapted[2] = -adapted[2]  # turned round: cosine −1
    adapted[4] = torch.linalg.qr(torch.stack([adapted[4], adapted[0]], dim=1)).Q[:, 1]  # a right angle: cosine 0
    found = explain(source, clips, adapted)
    np.testing.assert_allclose(found.prompts["moved"], [0, 0, 2, 0, 1, 0], atol=1e-6)
    assert found.prompts["rank"].tolist() == [3, 4, 1, 5, 2, 6]
    assert found.prompts["code"].tolist() == CODES and found.prompts["phrase"].tolist() == list(PHRASES)
    of_second = found.similarities[found.similarities["code"] == "AU4"]
    np.testing.assert_allclose(of_second["after"], -of_second["before"], rtol=1e-6)


def test_prompts_of_each_clip_are_averaged_and_used_for_that_clip() -> None:
    source, clips = fake_source(), fake_clips(subjects=1, per_subject=3)
    each = torch.stack([tuned(source, seed=seed) for seed in range(3)])
    together = explain(source, clips, each)
    alone = [explain(source, [clip], a) for clip, a in zip(clips, each, strict=True)]
    np.testing.assert_allclose(together.prompts["moved"], np.mean([one.prompts["moved"] for one in alone], axis=0))
    for part in ("windows", "similarities"):
        apart = pd.concat([getattr(one, part) for one in alone], ignore_index=True)
        pd.testing.assert_frame_equal(getattr(together, part), apart, rtol=1e-5)
    assert together.facts["prompts_per"] == "clip" and together.prompts["moved"].min() > 1e-4


def test_similarities_are_those_of_the_chosen_window() -> None:
    source, clips, chosen = fake_source(), fake_clips(subjects=1), 3
    adapted = tuned(source)
    predictions = [predict(source, clip, adapted, window=chosen) for clip in reversed(clips)]
    found = explain_subject(source, clips, adapted=adapted, predictions=predictions)
    for clip in clips:
        rows = found.similarities[found.similarities["clip_id"] == clip.clip_id]
        video = source.views(clip).embeddings[chosen]
        np.testing.assert_allclose(rows["before"], 5 * source.au_embeddings @ video, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rows["after"], 5 * adapted @ video, rtol=1e-5, atol=1e-6)
        assert rows["code"].tolist() == CODES
    assert found.windows["start_seconds"].tolist() == [chosen / 12.5] * len(clips)
    np.testing.assert_allclose(found.windows["end_seconds"], (chosen + 6) / 12.5)


def test_before_is_what_the_source_prompts_decide_by_themselves() -> None:
    source, clips = fake_source(), fake_clips(subjects=1, per_subject=12, seed=2)
    found = explain(source, clips, tuned(source, size=2.0)).windows.set_index("clip_id")
    for clip in clips:
        usual, row = predict(source, clip, source.au_embeddings), found.loc[clip.clip_id]
        assert row["start_seconds_before"] == usual.window_start_seconds
        assert row["end_seconds_before"] == usual.window_end_seconds
        assert row["other_window"] == (row["start_seconds"] != row["start_seconds_before"])
        assert row["probability_before"] == pytest.approx(float(usual.probabilities[-1]), abs=1e-6)
        assert row["entropy_before"] == pytest.approx(usual.entropy, abs=1e-6)
        assert row["class_before"] == source.classes[usual.label_index]
    assert 0 < found["other_window"].sum() < len(clips)  # else this data shows nothing
    assert 0 < (found["class_before"] != found["class_after"]).sum() < len(clips)


@pytest.mark.parametrize("readout", ["best_window", "mean_windows", "peak_window", "whole_clip"])
def test_clip_au_chooses_by_the_same_rule(readout: Readout) -> None:
    source, (clip,) = fake_source(seed=1), fake_clips(subjects=1, per_subject=1)
    views = source.whole_clip(clip) if readout == "whole_clip" else source.views(clip)
    logits = source.logits(views.embeddings)
    window = {"best_window": 10, "mean_windows": 10, "peak_window": 0, "whole_clip": 0}[readout]
    assert readout == "whole_clip" or int(entropy(logits).argmin()) == 10  # else this clip shows nothing
    start, end = float(views.start_seconds[window]), float(views.end_seconds[window])
    given = Prediction(clip.clip_id, clip.subject_id, torch.tensor([0.3, 0.7]), start, end, status="odd")
    found = explain_subject(
        source, [clip], adapted=source.au_embeddings, predictions=[given], readout=readout
    ).windows.iloc[0]
    wanted = logits.mean(0) if readout == "mean_windows" else logits[window]
    assert found["probability_before"] == pytest.approx(float(wanted.softmax(-1)[1]), abs=1e-6)
    assert found["probability_after"] == pytest.approx(0.7) and found["class_after"] == "pain"
    assert found["status"] == "odd" and not found["other_window"] and found["start_seconds_before"] == start


def test_phrases_that_are_not_ours_stand_for_themselves() -> None:
    source = fake_source(phrases=(*PHRASES[:2], "a furrowed brow, published"))
    (clip,) = fake_clips(subjects=1, per_subject=1)
    track = fake_track(clip, code="AU1", intensity=np.linspace(0, 5, len(clip.times)))
    found = explain(source, [clip], tuned(source), aus={clip.clip_id: track})
    assert found.prompts["code"].tolist() == ["AU1", "AU2", "a furrowed brow, published"]
    assert found.aus is not None and found.aus["code"].tolist() == ["AU1"]


def windows_of(similarity: list[float], intensity: list[float], presence: list[float]) -> TrackWindows:
    column = np.array([similarity]).T
    intensities, presences = pd.DataFrame({"AU4": intensity}), pd.DataFrame({"AU4": presence})
    return TrackWindows(column, -column, intensities, presences, spans_of(len(similarity)))


def spans_of(count: int) -> pd.DataFrame:
    """Windows of one second, each half a second after the one before."""
    starts = np.arange(count) / 2
    return pd.DataFrame({"clip_id": "c", "start_seconds": starts, "end_seconds": starts + 1})


def test_agreement_by_hand() -> None:
    found = au_agreement(
        windows_of([1, 2, 3, 4, 9], [0.1, 0.2, 0.3, 0.9, math.nan], [0, 0.4, 0.5, 1, math.nan]), ["AU4", "AU99"]
    )
    assert found.to_dict("records") == [
        {
            "code": "AU4",
            "rho_before": pytest.approx(1.0),
            "rho_after": pytest.approx(-1.0),
            "auc_before": 1.0,
            "auc_after": 0.0,
            "num_windows": 4,
            "num_present": 2,
            "num_clips": 1,
            "num_apart": 2,
        }
    ]
    swapped = au_agreement(windows_of([1, 3, 2, 4], [1, 2, 3, 4], [0, 1, 0, 1]), ["AU4"]).iloc[0]
    assert swapped["rho_before"] == pytest.approx(0.8) and swapped["auc_before"] == 1.0
    tied = au_agreement(windows_of([1, 1, 1, 2], [1, 2, 3, 4], [0, 1, 0, 1]), ["AU4"]).iloc[0]
    assert tied["auc_before"] == pytest.approx(0.75)


def test_agreement_is_that_of_the_libraries() -> None:
    rng = np.random.default_rng(0)
    similarity, intensity = rng.normal(size=200).round(1), rng.uniform(0, 5, 200).round(1)
    presence = (intensity + rng.normal(size=200) > 3).astype(float)
    found = au_agreement(windows_of(list(similarity), list(intensity), list(presence)), ["AU4"]).iloc[0]
    assert found["rho_before"] == pytest.approx(spearmanr(similarity, intensity).statistic)
    assert found["auc_before"] == pytest.approx(roc_auc_score(presence, similarity))
    assert found["auc_after"] == pytest.approx(roc_auc_score(presence, -similarity))


@pytest.mark.parametrize(
    ("similarity", "intensity", "presence"),
    [([1, 2], [1, 2], [1, 1]), ([1, 2, 3], [0, 0, 0], [0, 0, 0]), ([1, 2, 3], [math.nan] * 3, [math.nan] * 3)],
)
def test_an_agreement_that_is_not_defined_is_nan(
    similarity: list[float], intensity: list[float], presence: list[float]
) -> None:
    found = au_agreement(windows_of(similarity, intensity, presence), ["AU4"]).iloc[0]
    assert all(math.isnan(found[name]) for name in ("rho_before", "rho_after", "auc_before", "auc_after"))


def test_a_unit_that_openface_only_marks_has_an_area_and_no_correlation() -> None:
    windows = TrackWindows(
        np.array([[0.0], [1.0]]),
        np.array([[0.0], [1.0]]),
        pd.DataFrame(index=[0, 1]),
        pd.DataFrame({"AU28": [0.0, 1]}),
        spans_of(2),
    )
    found = au_agreement(windows, ["AU28"]).iloc[0]
    assert math.isnan(found["rho_before"]) and found["auc_before"] == 1.0 and found["num_windows"] == 2


def test_windows_that_do_not_overlap_are_counted_per_clip() -> None:
    spans = pd.concat([spans_of(7), spans_of(2).assign(clip_id="d")])
    assert (count_apart(spans), count_apart(spans[:0]), count_apart(spans_of(1))) == (5, 0, 1)


def test_a_mean_takes_several_clips_and_enough_windows() -> None:
    table = pd.DataFrame({"code": ["a", "b", "c"], "num_clips": [3, 2, 9], "num_apart": [10, 99, 9]})
    assert enough(table)["code"].tolist() == ["a"]


def test_openface_that_follows_the_model_agrees_with_it() -> None:
    source, clips = fake_source(), fake_clips(subjects=1, num_frames=60)
    adapted, tracks = tuned(source, size=2.0), {}
    for clip in clips[:3]:  # the last clip has no file
        after = source.model.similarities(source.views(clip).embeddings, adapted)[:, 2].numpy()
        intensity = np.interp(np.arange(60), np.arange(len(after)) + 2.5, 2.5 + after / 2)
        tracks[clip.clip_id] = fake_track(clip, code="AU4", intensity=intensity)
    found = explain(source, clips, adapted, aus=tracks)
    assert found.aus is not None and found.aus["code"].tolist() == ["AU4"]
    row = found.aus.iloc[0]
    assert row["rho_after"] > 0.8 > row["rho_before"] and row["num_windows"] == 3 * 55
    assert found.facts["au_files"]["s0c0"] == {
        "file": "s0c0.csv",
        "tool": "OpenFace 2",
        "face": "",
        "rows": 60,
        "rows_dropped": 0,
        "rows_of_other_faces": 0,
        "notes": [],
    }
    assert explain(source, clips, adapted, aus={"other": tracks["s0c0"]}).aus is None


def test_what_does_not_belong_together_is_refused() -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    a = source.au_embeddings
    predictions = [predict(source, clip, a) for clip in clips]

    def refused(message: str, given: list[ClipFeatures] = clips, **changed: Any) -> None:
        options = {"adapted": a, "predictions": predictions, **changed}
        with pytest.raises(ValueError, match=re.escape(message)):
            explain_subject(source, given, **options)

    refused("adapted is (5, 16); allowed: [K, d] = (6, 16) and [clips, K, d] = (4, 6, 16)", adapted=a[:5])
    refused("adapted is (3, 6, 16); allowed:", adapted=a.expand(3, 6, 16))
    refused("subject 's0': clips and predictions differ in s0c3; each clip needs one", predictions=predictions[:3])
    refused("clips and predictions differ in s0c0, s0c1", predictions=[*predictions, predictions[0]])
    refused("clips is empty", given=[])
    refused("clips belong to the subjects s0, s1; allowed is one", given=fake_clips())
    shifted = [replace(one, window_start_seconds=99.0) for one in predictions]
    refused("clip 's0c0' was predicted from 99 to", predictions=shifted)
    refused("is none of its 1 windows; give the source the windows", readout="whole_clip")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    clips = [replace(clip, clip_id=name) for clip, name in zip(clips, ["007", "NA", "a,b", "1e5"], strict=True)]
    track = fake_track(clips[0], code="AU4", intensity=np.zeros(20))
    found = explain(source, clips, tuned(source), aus={"007": track}, facts={"method": "CLIP-AUTT"})
    own = write_explanation(found, tmp_path, name="s%2F0")
    assert sorted(path.name for path in own.iterdir()) == [
        "aus.csv",
        "explanation.json",
        "prompts.csv",
        "similarities.csv",
        "windows.csv",
    ]
    again = read_explanation(own)
    for part in ("prompts", "similarities", "windows", "aus"):
        pd.testing.assert_frame_equal(getattr(again, part), getattr(found, part), rtol=1e-14)
    assert (again.subject_id, again.classes, again.facts) == ("s0", found.classes, found.facts)
    assert again.windows["clip_id"].tolist() == ["007", "NA", "a,b", "1e5"]
    assert json.loads((own / "explanation.json").read_text())["clip_ids"] == ["007", "NA", "a,b", "1e5"]
    assert list(read_explanations(tmp_path)) == ["s%2F0"]


def test_what_was_there_before_goes(tmp_path: Path) -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    track = fake_track(clips[0], code="AU4", intensity=np.zeros(20))
    write_explanation(explain(source, clips, tuned(source), aus={"s0c0": track}), tmp_path, name="s0")
    own = write_explanation(explain(source, clips, tuned(source)), tmp_path, name="s0")
    assert not (own / "aus.csv").exists() and read_explanation(own).aus is None


def test_facts_of_the_caller_are_kept_and_replace_none_of_ours(tmp_path: Path) -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    found = explain(source, clips, tuned(source), facts={"clip_ids": [], "subject_id": "other", "seed": 3})
    own = write_explanation(found, tmp_path, name="s0")
    assert len(json.loads((own / "explanation.json").read_text())["clip_ids"]) == 4
    assert read_explanation(own).subject_id == "s0" and read_explanation(own).facts["seed"] == 3


def test_writing_that_is_cut_short_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    found = explain(source, clips, tuned(source))
    write_explanation(found, tmp_path, name="s0")

    def full(path: Path, text: str) -> None:
        raise OSError(f"no space left for {path} of {len(text)} letters")

    monkeypatch.setattr("clipautt.evaluation.prompt_changes.write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_explanation(found, tmp_path, name="s0")
    assert read_explanations(tmp_path) == {}


def test_half_an_explanation_is_none(tmp_path: Path) -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    own = write_explanation(explain(source, clips, tuned(source)), tmp_path, name="s0")
    (own / "explanation.json").unlink()
    assert read_explanations(tmp_path) == {}
    with pytest.raises(FileNotFoundError, match=re.escape(f"no explanation in {own} (explanation.json is missing)")):
        read_explanation(own)
    for name in ("", "..", "a/b"):
        with pytest.raises(ValueError, match=re.escape(f"name={name!r}; allowed is the name of a single folder")):
            write_explanation(explain(source, clips, tuned(source)), tmp_path, name=name)


def test_units_that_the_backbone_never_learned_are_marked() -> None:
    source = fake_source(backbone=load_backbone(BackboneConfig()), phrases=phrases())
    clips = fake_clips(subjects=1, per_subject=2, feature_dim=128)
    learned = explain(source, clips, source.au_embeddings).prompts.set_index("code")["learned"]
    assert [code for code, known in learned.items() if known] == list(RENDERED)
    assert explain(fake_source(), fake_clips(subjects=1), fake_source().au_embeddings).prompts["learned"].all()


def test_an_explanation_of_an_earlier_version_marks_nothing(tmp_path: Path) -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    folder = write_explanation(explain(source, clips, source.au_embeddings), tmp_path, name="s0")
    table = pd.read_csv(folder / "prompts.csv")
    table.drop(columns="learned").to_csv(folder / "prompts.csv", index=False)
    assert read_explanation(folder).prompts["learned"].tolist() == [True] * 6
