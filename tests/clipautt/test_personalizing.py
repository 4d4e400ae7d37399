"""One person's videos in, the personalization of `adapt` out, with what it rests on and what speaks against it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clipautt import Predictor
from clipautt.adaptation.basis import FEWEST_FRAMES, Basis
from clipautt.adaptation.driver import adapt
from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods.t3a import T3A
from clipautt.adaptation.methods.zero_shot import ZeroShot
from clipautt.adaptation.personalization import Personalization, save_personalization
from clipautt.adaptation.source import Source
from clipautt.features.clip_features import encode_clip
from clipautt.model.checkpoint import Checkpoint
from clipautt.personalizing import (
    NothingLeftError,
    check_keeps_something,
    clips_of,
    personalize_features,
    without_copies,
)
from clipautt.subjects import subject_file
from tests.support.configs import adapt_config, changed
from tests.support.fakes import fake_clip, fake_clips, fake_source, write_video
from tests.support.photograph import photograph

TUNED = adapt_config(objective="infomax_kl", steps=2, learning_rate=0.1, subject_baseline="median")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two videos of one person; 20 and 30 frames are sampled."""
    folder = tmp_path_factory.mktemp("videos")
    paths = []
    for name, count in (("b", 40), ("a", 60)):
        frames = [photograph(x=110 + i, y=120, scale=1.6, size=(240, 240)) for i in range(count)]
        paths.append(write_video(folder / f"{name}.mp4", np.stack(frames)))
    return paths


@pytest.fixture(scope="module")
def source() -> Source:
    return fake_source(subject_baseline="median")


@pytest.mark.parametrize("config", [None, TUNED, AdaptConfig(T3A(), protocol="online", subject_baseline="median")])
def test_it_is_what_adapt_makes_of_the_same_clips_to_the_last_bit(
    tmp_path: Path, source: Source, videos: list[Path], config: AdaptConfig | None
) -> None:
    predictor = Predictor(source, personalizations=tmp_path)
    made = predictor.personalize("anna", videos, config=config, save=True)
    clips, _ = clips_of("anna", videos)
    frames = source.checkpoint.spec.features.frames
    features = [encode_clip(clip, source.backbone, frames) for clip in clips]
    used = config or adapt_config(subject_baseline="median")
    (result,) = adapt(source, features, used).values()
    expected = Personalization.of(result, used)
    assert made.config == used and made.clips == expected.clips and set(made.clips) == {"anna/a", "anna/b"}
    assert made.basis == expected.basis == Basis(2, 50, 4.0) and (made.num_frames, made.seconds) == (50, 4.0)
    assert torch.equal(made.centre, expected.centre) and made.centre.abs().sum() > 0
    theirs, mine = tmp_path / "theirs.safetensors", tmp_path / "anna.safetensors"
    save_personalization(replace(expected, notes=made.notes), theirs, checkpoint=source.checkpoint.fingerprint)
    assert theirs.read_bytes() == mine.read_bytes()
    answers = [predictor.predict(videos[0], subject=who) for who in ("anna", made)]
    assert answers[0].probabilities == answers[1].probabilities and answers[0].personalized_for == "anna"
    assert any(f"rests on 50 frames (4.0 s); with fewer than {FEWEST_FRAMES} it" in one for one in answers[0].warnings)
    assert not any("rests on" in one for one in predictor.predict(videos[0]).warnings)


def test_enough_frames_give_no_warning_and_a_file_of_before_loads(tmp_path: Path) -> None:
    source, config = fake_source(subject_baseline="median"), adapt_config(subject_baseline="median")
    for count, few in ((FEWEST_FRAMES, False), (FEWEST_FRAMES - 1, True)):
        (result,) = adapt(source, [fake_clip(num_frames=count)], config).values()
        made = Personalization.of(result, config)
        assert (made.num_frames, bool(made.warnings)) == (count, few)
    path = tmp_path / subject_file("s0")
    save_personalization(made, path, checkpoint=source.checkpoint.fingerprint)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["personalization"])
    before = {name: value for name, value in facts.items() if name not in ("basis", "omitted", "notes")}
    save_file(load_file(path), path, metadata={"personalization": json.dumps(before)})
    loaded = Predictor(source, personalizations=tmp_path).find_personalization("s0")
    assert (loaded.basis, loaded.num_frames, loaded.seconds, loaded.warnings) == (None, None, None, ())
    assert repr(loaded).endswith("; footage unknown)") and torch.equal(loaded.centre, made.centre)
    assert Predictor(source).predict_features(fake_clip(), personalization=loaded).warnings == ()


def test_only_frames_of_the_face_in_clips_that_take_part_are_counted() -> None:
    source, config = fake_source(subject_baseline="median"), adapt_config(subject_baseline="median")
    seen = replace(fake_clip("c0"), face_found=np.arange(20) < 15, min_share=0.8)
    gone = replace(fake_clip("c1"), face_found=np.arange(20) < 2, min_share=0.8)
    (result,) = adapt(source, [seen, gone], config).values()
    assert result.basis == Basis(1, 15, 1.2, 0.75)
    assert str(result.basis) == "1 clip, 15 frames that show the face (75 % of all), 1.2 s"
    made = Personalization.of(result, config)
    assert list(made.omitted) == ["c1"] and made.omitted["c1"].startswith("the face is found in 2 of 20 frames")
    (last,) = adapt(source, fake_clips(subjects=1), changed(config, protocol="per_video")).values()
    assert last.basis == Basis(1, 20, 1.6)


def test_clips_are_called_as_a_data_set_of_folders_calls_them(tmp_path: Path) -> None:
    names = ["x/1.mp4", "y/1.mp4", "y/2.mp4", "y/2.avi", "z.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path / "z.mp4", tmp_path / "link.mp4")
    clips, notes = clips_of("anna", [tmp_path / name for name in [*names, "link.mp4"]])
    assert [clip.clip_id for clip in clips] == ["anna/x/1", "anna/y/1", "anna/2.mp4", "anna/2.avi", "anna/z"]
    assert notes == ["z was given 2 times and counts once."]


def test_clips_that_are_encoded_already_give_the_same_and_copies_count_once(source: Source) -> None:
    config = adapt_config(subject_baseline="median")
    clips = fake_clips(subjects=1)
    rounded = replace(clips[1], clip_id="again", features=clips[1].features * (1 + 1e-3))
    other = replace(clips[1], clip_id="other", features=clips[1].features * 1.1)
    left, notes = without_copies([*clips, rounded, other])
    assert [clip.clip_id for clip in left] == ["s0c0", "s0c1", "s0c2", "s0c3", "other"]
    assert notes == ["again shows the same frames as 's0c1', and they count once."]
    dark = replace(clips[0], brightness=np.full(20, 0.05, np.float32))
    made = personalize_features(
        source, "anna", [dark, *clips[1:]], config=config, omitted={"s0c9": "gone"}, notes=["first"]
    )
    (result,) = adapt(source, clips, config).values()
    assert torch.equal(made.centre, result.centre) and made.subject_id == "anna"
    assert made.omitted == {"s0c9": "gone"} and made.notes[0] == "first"
    assert made.notes[1].startswith("s0c0: The picture is dark: its brightness is 0.05")
    with pytest.raises(NothingLeftError) as caught:
        personalize_features(source, "anna", [fake_clip(num_frames=2)], config=config, omitted={"c9": "gone"})
    assert list(caught.value.omitted) == ["c9", "c0"]
    assert str(caught.value).startswith(
        "no video can be used to personalize to 'anna':\n  c9: gone\n  c0: too short: 2"
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (AdaptConfig(ZeroShot()), "'zero-shot' adapts nothing to a person; take adapt=default"),
        (adapt_config(), "adapt.subject_baseline='none', but the checkpoint was trained with 'median'"),
        (changed(TUNED, protocol="per_video"), "begins every video at the source model"),
    ],
)
def test_settings_after_which_nothing_is_left_are_refused(source: Source, config: AdaptConfig, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_keeps_something(source, config)


def test_a_checkpoint_without_class_descriptions_or_baseline_says_what_to_take() -> None:
    source = fake_source()
    with pytest.raises(ValueError, match="'CLIP-AU, best window' adapts nothing to a person; take adapt=default, with"):
        Predictor(source).personalize("anna", "gone.mp4")
    bare = Source(
        Checkpoint(source.checkpoint.model, replace(source.checkpoint.spec, descriptions=())), source.backbone
    )
    with pytest.raises(ValueError, match="needs class descriptions, but this checkpoint has none for neutral, pain"):
        Predictor(bare).personalize("anna", "gone.mp4", config=AdaptConfig(ZeroShot(), subject_baseline="median"))


def test_what_cannot_be_saved_or_used_is_said(tmp_path: Path, source: Source, videos: list[Path]) -> None:
    predictor = Predictor(source)
    with pytest.raises(ValueError, match="save=True needs a predictor with a folder of adapted prompts; give save="):
        predictor.personalize("anna", videos, save=True)
    short = write_video(tmp_path / "short.mp4", np.stack([photograph(size=(96, 96))] * 4))
    still = write_video(tmp_path / "still.mp4", np.stack([photograph(size=(96, 96))] * 40))
    for path, why in (
        (short, "too short: 2 frames, fewer than a window of 6 has"),
        (still, "the picture does not move"),
    ):
        with pytest.raises(ValueError) as caught:
            predictor.personalize("anna", path, save=tmp_path / "prompts")
        assert str(caught.value).startswith(
            f"no video can be used to personalize to 'anna':\n  anna/{path.stem}: {why}"
        )
    assert not (tmp_path / "prompts").exists()
