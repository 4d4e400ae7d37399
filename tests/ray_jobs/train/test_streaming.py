"""Training straight from decoded clips, on a real local Ray with real mp4 files: the same model as from the store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.features.clip_features import FeatureSpec, SubjectBaseline, clip_key
from clipautt.features.store import FeatureStore
from clipautt.manifest import Manifest, read_manifest, write_manifest
from clipautt.model.checkpoint import load_checkpoint
from clipautt.model.network import ClipAU, initial_model
from clipautt.model.training import PHRASES, Example, TrainConfig, fit
from clipautt.model.windows import WindowSpec
from clipautt.video.augmentation import Augmentation
from clipautt.video.decoding import Sampling
from ray_jobs import cli
from ray_jobs.platform.cluster import ClusterConfig
from ray_jobs.platform.extraction.augmented import extract_passes
from ray_jobs.platform.extraction.extract import ExtractionConfig, extract
from ray_jobs.platform.extraction.pipeline import EncodedClip, PipelineConfig
from ray_jobs.train.job import (
    TrainJob,
    _train_one,
    augmented_examples,
    check_streaming,
    epoch_lines,
    extract_augmented,
    load_examples,
    stored_splits,
    streamed_clips,
)
from ray_jobs.train.streaming import beside_trainer, in_listed_order
from tests.support.fakes import write_video

pytestmark = pytest.mark.usefixtures("local_ray")
STREAMED = TrainConfig(window=WindowSpec(length=4), batch_size=4, features="streamed")
SETTINGS = ["train.window.length=4", "train.batch_size=4", "train.features=streamed"]
CHANGED = Augmentation(flip=0.5, crop=0.3, colour=0.4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nine training clips of three subjects, two validation clips and a manifest."""
    folder = tmp_path_factory.mktemp("data")
    clips = []
    for number in range(11):
        subject = f"s{number // 3}"
        rng = np.random.default_rng([7, number])
        picture = rng.integers(40, 216, (6, 6, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        moving = np.stack([np.roll(picture, 3 * at, 1) for at in range(6 + number)])
        path = write_video(folder / f"c{number:02d}.mp4", moving)
        split: Any = "source_val" if number > 8 else "source_train"
        label = "pain" if number % 2 else "neutral"
        clips.append(Clip(path.stem, subject, str(path), label=label, split=split, dataset="made"))
    write_manifest(clips, folder / "manifest.parquet", classes=("neutral", "pain"))
    return folder


def manifest_of(data: Path) -> Manifest:
    return read_manifest(data / "manifest.parquet")


def train(data: Path, *words: str) -> int:
    given = [f"manifest={data / 'manifest.parquet'}", f"store={data / 'store'}", f"runs={data / 'runs'}"]
    return cli.main(["train", *given, *SETTINGS, *words])


def spec() -> FeatureSpec:
    return FeatureSpec.of(load_backbone(BackboneConfig()), Sampling(12.5))


def cached(data: Path, baseline: SubjectBaseline, epochs: int) -> tuple[ClipAU, list[float]]:
    """The model trained on stored features, and its losses."""
    config = replace(STREAMED, features="cached", subject_baseline=baseline, epochs=epochs)
    manifest = manifest_of(data)
    store = FeatureStore(data / "store", spec())
    examples = load_examples(manifest, store, manifest.of_split("source_train"), config)
    assert len(examples) == 9
    return fitted(examples, config)


def fitted(examples: Any, config: TrainConfig) -> tuple[ClipAU, list[float]]:
    backbone = load_backbone(BackboneConfig())
    with torch.no_grad():
        text = backbone.encode_prompts(backbone.tokenize(PHRASES, context=config.context))
    model = initial_model(backbone.feature_dim, len(PHRASES), 2, seed=config.seed)
    losses: list[float] = []
    fit(model, text, examples, config, on_epoch=lambda _, loss: losses.append(loss))
    return model, losses


def same_weights(one: ClipAU, other: ClipAU) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(p.detach(), q.detach(), atol=1e-5, rtol=0) for p, q in pairs)


def job_of(data: Path, *configs: TrainConfig) -> TrainJob:
    return TrainJob(manifest_of(data), extraction_of(data), spec(), configs, str(data))


def extraction_of(data: Path) -> ExtractionConfig:
    return ExtractionConfig(BackboneConfig(), str(data / "store"))


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """A run that was streamed by the command, and stored no training clip."""
    assert train(data, "baselines=[none]", "train.epochs=2", "name=streamed") == 0
    assert set(FeatureStore(data / "store", spec()).status()["clip_id"]) == {"c09", "c10"}
    return data / "runs" / "train" / "streamed"


@pytest.fixture(scope="module")
def stored(data: Path, run: Path) -> FeatureStore:
    """With all clips, once the run without them is done."""
    return extract(manifest_of(data).clips, extraction_of(data))[0]


def compare(model: ClipAU, losses: list[float], data: Path, baseline: SubjectBaseline) -> None:
    """Losses to 1e-5 and weights to 1e-4 are those of training on stored features."""
    expected, expected_losses = cached(data, baseline, len(losses))
    np.testing.assert_allclose(losses, expected_losses, atol=1e-5, rtol=0)
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), other.detach(), atol=1e-4, rtol=0)
    untrained = initial_model(spec().feature_dim, len(PHRASES), 2, seed=0)
    pairs = zip(model.parameters(), untrained.parameters(), strict=True)
    assert max(float((p - q).detach().abs().max()) for p, q in pairs) > 1e-3  # or the lines above would say nothing


def test_the_command_streams_the_model_that_stored_features_give(data: Path, run: Path, stored: FeatureStore) -> None:
    rows = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["clips"], row["omitted"]) for row in rows] == [(0, 9, {}), (1, 9, {})]
    streamed = load_checkpoint(run / "checkpoints" / "none")
    compare(streamed.model, [row["loss"] for row in rows], data, "none")
    assert streamed.spec.training["features"] == "streamed" and set(streamed.spec.metrics) == {"war", "uar", "entropy"}


@pytest.mark.slow
def test_subjects_centres_are_those_of_the_store(data: Path, stored: FeatureStore) -> None:
    config = replace(STREAMED, subject_baseline="median", epochs=1)
    compare(*fitted(streamed_clips(job_of(data, config), config, stored).batches, config), data, "median")


def test_training_clips_are_stored_where_training_needs_them() -> None:
    none, median = (replace(STREAMED, subject_baseline=baseline) for baseline in ("none", "median"))
    assert stored_splits([none]) == ("source_val",)
    for configs in ([median], [none, median], [replace(none, features="cached")]):
        assert stored_splits(configs) == ("source_train", "source_val")


def test_a_finished_run_trains_nothing(data: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert train(data, "baselines=[none]", "train.epochs=2", "name=streamed") == 0
    again = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert again == kept
    assert "epoch" not in capsys.readouterr().out


@pytest.mark.slow
def test_augmentation_changes_every_epoch_and_unreadable_clips_are_left_out(data: Path, stored: FeatureStore) -> None:
    """Nine clips that can be read and one that cannot; the latter is asked for once."""
    config = replace(STREAMED, subject_baseline="none", epochs=2, augmentation=CHANGED)
    stream = streamed_clips(job_of(data, config), config, FeatureStore(data / "elsewhere", spec()))
    (data / "broken.mp4").write_text("not a video")
    stream.clips.append(Clip("broken", "s0", str(data / "broken.mp4"), label="pain", split="source_train"))
    seen: list[dict[str, torch.Tensor]] = []
    omitted = []

    def batches(epoch: int) -> Iterator[Sequence[Example]]:
        found = list(stream.batches(epoch))
        assert [len(batch) for batch in found] == [4, 4, 1]
        seen.append({example.clip.clip_id: example.clip.features for batch in found for example in batch})
        omitted.append(stream.figures.omitted)
        return iter(found)

    _, losses = fitted(batches, config)
    _, clean = cached(data, "none", 1)
    assert abs(losses[0] - clean[0]) > 1e-4
    assert set(seen[0]) == set(seen[1]) == {f"c{number:02d}" for number in range(9)}
    for clip_id in seen[0]:
        assert (seen[0][clip_id] - seen[1][clip_id]).abs().max() > 1e-3, clip_id
    assert set(omitted[0]) == {"broken"} and "broken.mp4" in omitted[0]["broken"] and omitted[1] == {}


def test_stored_passes_are_what_streaming_gives_and_are_trained_on(
    data: Path, stored: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clip that fails costs one row per pass, and two clips of one file are changed by their own ids."""
    clips = list(manifest_of(data).of_split("source_train"))
    (tmp_path / "broken.mp4").write_text("not a video")
    twin = replace(clips[0], clip_id="twin")
    every = [*clips, twin, replace(clips[0], clip_id="broken", source=str(tmp_path / "broken.mp4"))]
    stores = extract_passes(every, extraction_of(data), CHANGED, passes=2, seed=0)
    shown = capsys.readouterr().out
    assert "extract pass 1: 11/11" in shown and "without augmented features in pass 2 of 2:\nclip" in shown
    for store in stores:
        loaded = store.load(every)
        assert store.present(every) == set(loaded) == {f"c{number:02d}" for number in range(9)} | {"twin"}
        assert (loaded["twin"].features - loaded["c00"].features).abs().max() > 1e-3
        assert store.missing(every) == [] and store.facts([twin])["twin"].num_frames == len(loaded["c00"].times)
    config = replace(STREAMED, subject_baseline="median", epochs=2, augmentation=CHANGED)
    kept = replace(config, features="augmented", augmented_passes=3)
    extract_augmented(clips, extraction_of(data), kept)
    assert capsys.readouterr().out == "", "two epochs take two passes, which are there"
    batches = augmented_examples(job_of(data, kept), kept, stored)
    assert batches.omitted == {}
    stream = streamed_clips(job_of(data, config), config, stored)
    for batch, other in zip(batches(1), stream.batches(1), strict=True):
        assert [(e.clip.clip_id, e.label) for e in batch] == [(e.clip.clip_id, e.label) for e in other]
        for example, streamed in zip(batch, other, strict=True):
            torch.testing.assert_close(example.clip.features, streamed.clip.features, atol=2e-5, rtol=0)
    first, again = ({e.clip.clip_id: e.clip.features for b in batches(epoch) for e in b} for epoch in range(2))
    assert min(float((first[name] - again[name]).abs().max()) for name in first) > 1e-3, "the passes differ"
    model, _ = fitted(batches, kept)
    metrics = _train_one(job_of(data, kept), kept, load_backbone(BackboneConfig()), rank=0, world=1)
    checkpoint = load_checkpoint(data / "checkpoints" / "median")
    assert same_weights(checkpoint.model, model) and set(metrics) == {"war", "uar", "entropy"}
    assert checkpoint.spec.training["features"] == "augmented" and checkpoint.spec.features == spec()


@pytest.mark.slow
def test_the_command_extracts_and_trains_on_augmented_features(data: Path, stored: FeatureStore) -> None:
    words = ("train.features=augmented", "train.augmentation.flip=0.5", "train.augmentation.crop=0.3")
    assert train(data, *words, "train.augmentation.colour=0.4", "train.epochs=2", "name=augmented") == 0
    config = replace(STREAMED, subject_baseline="median", epochs=2, augmentation=CHANGED, features="augmented")
    expected, _ = fitted(augmented_examples(job_of(data, config), config, stored), config)
    found = load_checkpoint(data / "runs" / "train" / "augmented" / "checkpoints" / "median")
    for parameter, other in zip(found.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), other.detach(), atol=1e-4, rtol=0)


def test_no_change_takes_no_pass(data: Path, stored: FeatureStore) -> None:
    clips, extraction = manifest_of(data).clips, extraction_of(data)
    (store,) = extract_passes(clips, extraction, Augmentation(), passes=3, seed=0)
    assert store.path == stored.path
    with pytest.raises(ValueError, match="passes=0; allowed: 1 or more"):
        extract_passes(clips, extraction, CHANGED, passes=0, seed=0)


def test_clips_known_to_fail_are_not_asked_for(data: Path, stored: FeatureStore, tmp_path: Path) -> None:
    manifest = manifest_of(data)
    clips = manifest.of_split("source_train")
    store = FeatureStore(tmp_path, spec())
    facts = {"status": "unreadable", "reason": "", "times": None, "features": None}
    store.append([{"clip_key": clip_key(clips[0]), "clip_id": clips[0].clip_id} | facts])
    config = replace(STREAMED, subject_baseline="none")
    without = streamed_clips(job_of(data, config), config, store)
    assert [clip.clip_id for clip in without.clips] == [clip.clip_id for clip in clips[1:]] and not without.centres
    centred = streamed_clips(job_of(data, config), replace(config, subject_baseline="mean"), stored)
    assert centred.clips == list(clips) and set(centred.centres) == {"s0", "s1", "s2"}


def test_several_workers_are_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(data, "workers=2", "name=several") == 2
    assert "workers=2 with train.features=streamed, which trains in one worker" in capsys.readouterr().err


def test_the_trainer_leaves_room_for_decoders_and_encoders() -> None:
    pipeline = beside_trainer(PipelineConfig(min_encoders=2, encoders=4), ClusterConfig())
    assert (pipeline.encoders, pipeline.min_encoders) == (1, 1)
    greedy = ExtractionConfig(BackboneConfig(), "store", pipeline=PipelineConfig(decoder_cpus=1.0))
    message = (
        r"streamed needs 2\.5 cores, 1 to train, 1 to decode and 0\.5 to encode, and the cluster has 2; set train\.f"
    )
    with pytest.raises(ValueError, match=message):
        check_streaming(STREAMED, greedy, workers=1)
    check_streaming(replace(STREAMED, features="cached"), greedy, workers=2)


def encoded(*names: str) -> list[EncodedClip]:
    return [EncodedClip(Clip(name, "s", name, "source_train"), "ok") for name in names]


@pytest.mark.parametrize("arriving", ["abcdef", "bacdef", "bcdefa", "fedcba", "acebdf"])
def test_clips_come_in_the_order_of_listing(arriving: str) -> None:
    listed = [one.clip for one in encoded(*"abcdef")]
    assert "".join(one.clip.clip_id for one in in_listed_order(encoded(*arriving), listed)) == "abcdef"


def test_a_clip_is_given_as_soon_as_those_before_it_were() -> None:
    arriving = iter(encoded(*"bacd"))
    ordered = in_listed_order(arriving, [one.clip for one in encoded(*"abcd")])
    assert next(ordered).clip.clip_id == "a" and [one.clip.clip_id for one in arriving] == ["c", "d"]


def test_a_clip_that_comes_very_late_holds_up_a_bounded_number() -> None:
    names = [f"{number:04d}" for number in range(600)]
    arriving = iter(encoded(*names[1:], names[0]))
    ordered = in_listed_order(arriving, [one.clip for one in encoded(*names)])
    assert next(ordered).clip.clip_id == "0001" and len(list(arriving)) == 600 - 257
    late = in_listed_order(encoded(*names[1:], names[0]), [one.clip for one in encoded(*names)])
    assert [one.clip.clip_id for one in late] == [*names[1:], names[0]]


def test_line_of_an_epoch() -> None:
    row = {"subject_baseline": "median", "epoch": 1, "epochs": 10, "loss": 0.69314, "clips": 48, "frames": 960}
    shown = "train median: epoch 2/10, loss 0.6931, 48 clips, 12 clips/s, 240 frames/s"
    assert epoch_lines(row | {"seconds": 4.0, "omitted": {}}) == [shown]
    many = {f"c{number:02d}": "no face" for number in range(22)}
    lines = epoch_lines(row | {"seconds": 4.0, "omitted": many})
    assert lines[:2] == [f"{shown}, 22 omitted", "  c00: no face"] and lines[-1] == "  … and 2 more"
    assert len(lines) == 22


def test_settings_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for key in ("train.features", "train.augmentation.flip", "train.augmentation.crop", "train.augmentation.colour"):
        assert key in shown
