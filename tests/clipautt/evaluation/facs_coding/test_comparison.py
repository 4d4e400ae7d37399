"""Figures of cases that can be worked out by hand, and of rendered faces, whose true activations are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from clipautt.action_units import RENDERED, VOCABULARY, action_unit_columns, phrases
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.datasets.synthetic.identity import draw_identity
from clipautt.datasets.synthetic.renderer import render
from clipautt.datasets.synthetic.video import write_mp4
from clipautt.evaluation.facs_coding.coding import ClipCoding, Piece, Track
from clipautt.evaluation.facs_coding.comparison import AU_COLUMNS, SUBJECT_COLUMNS, CodedClip, compare
from clipautt.evaluation.facs_coding.matching import match_coding, read_coding
from clipautt.features.clip_features import encode_clip
from clipautt.model.windows import WindowSpec
from clipautt.video.decoding import Sampling
from clipautt.video.reader import FrameSpec
from tests.support.fakes import fake_checkpoint

COLUMNS = ["AU4", "AU12"]
NAN = float("nan")


def track(values: list[float]) -> Track:
    return Track.of((t, t + 1.0, value) for t, value in enumerate(values))


def coded(
    subject: str, similarity: list[float], *, occurrence: dict[str, list[float]] | None = None, **more: list[float]
) -> CodedClip:
    """A clip with one window per frame and second; the similarity is AU4's, that of AU12 is its negative."""
    pieces = [
        Piece(Path("x"), "x", kind, "seconds", {code: track(own) for code, own in tracks.items()})  # type: ignore[arg-type]
        for kind, tracks in (("occurrence", occurrence or {}), ("intensity", more))
        if tracks
    ]
    values = np.stack([similarity, -np.array(similarity)], axis=1).astype(np.float32)
    windows = np.arange(len(similarity))[:, None]
    times = np.arange(len(similarity), dtype=float)
    return CodedClip(
        f"{subject}c", subject, ClipCoding(tuple(pieces)), times, windows, {"model": values, "backbone": -values}
    )


def row_of(aus: pd.DataFrame, code: str = "AU4", which: str = "model") -> pd.Series:
    return aus[(aus["au"] == code) & (aus["similarity"] == which)].iloc[0]


def test_figures_of_one_subject_by_hand() -> None:
    """Of 2 × 3 pairs of windows with and without AU4, the similarity orders five rightly; the frame coded as missing is
    left out."""
    aus, subjects = compare([coded("a", [1, 5, 2, 4, 3, 9], occurrence={"AU4": [0, 1, 0, 0, 1, NAN]})], COLUMNS)
    assert list(aus.columns) == AU_COLUMNS and list(subjects.columns) == SUBJECT_COLUMNS
    row = row_of(aus)
    assert row["roc_auc"] == pytest.approx(5 / 6) and row_of(aus, which="backbone")["roc_auc"] == pytest.approx(1 / 6)
    assert row["roc_auc_others"] == pytest.approx(1 / 6)
    assert (row["num_windows"], row["num_windows_not_coded"], row["share_present"]) == (5, 1, 0.4)
    assert (row["coded_as"], row["status"], row["num_subjects"], row["verdict"]) == (
        "occurrence",
        "few_subjects",
        1,
        "",
    )
    assert row["reason"] == "1 subject with and without it; an interval needs 6"
    assert np.isnan(row[["roc_auc_low", "icc"]].astype(float)).all()


def test_icc_counts_scale_between_people_and_no_offset() -> None:
    """Three people are coded alike. Two have similarities of the same spread, whatever their offset; the third's move
    half as much. On the scale of the other two: 2 · cov / (var + var) = 2 · 0.5 / (1 + 0.25) = 0.8."""
    levels = [0.0, 1.0, 2.0, 3.0, 0.0, 1.0]
    people = {"a": np.array(levels), "b": np.array(levels) - 7, "c": np.array(levels) / 2}
    _, subjects = compare([coded(name, list(values), AU4=levels) for name, values in people.items()], COLUMNS)
    model = subjects[subjects["similarity"] == "model"].set_index("subject_id")
    assert model["spearman"].tolist() == pytest.approx([1, 1, 1]) and model.loc["c", "icc"] == pytest.approx(0.8)
    scale = np.sqrt(2 / 1.25)  # of a: from b and c
    assert model.loc["a", "icc"] == pytest.approx(2 * scale / (1 + scale**2))
    alone = compare([coded("a", levels, AU4=levels)], COLUMNS)[0]
    assert row_of(alone)["num_subjects_icc"] == 0  # no other subject tells the scale


def test_intervals_over_subjects_and_one_threshold_for_all() -> None:
    """Six people whose resting faces differ: within each the similarity is perfect, one threshold for all is not."""
    people = [coded(f"s{i}", [3 * i, 3 * i + 1, 3 * i, 3 * i + 2], occurrence={"AU4": [0, 1, 0, 1]}) for i in range(6)]
    row = row_of(compare(people, COLUMNS)[0])
    assert (row["roc_auc"], row["roc_auc_low"], row["roc_auc_high"], row["status"]) == (1.0, 1.0, 1.0, "ok")
    assert (
        row["verdict"] == "above_chance"
        and row_of(compare(people, COLUMNS)[0], which="backbone")["verdict"] == "below_chance"
    )
    assert row["roc_auc_pooled"] == pytest.approx(0.5 + 1 / 12) and row["roc_auc_pooled_centred"] == 1.0


def test_what_has_no_figure_says_why() -> None:
    coding = {"AU45": [0.0, 1.0], "AU4": [0.0, 0.0], "AU12": [1.0, 1.0], "AU9": [NAN, NAN], "AU28": [0.0, 1.0]}
    aus, subjects = compare(
        [coded("a", [0, 1], occurrence=coding), coded("b", [0, 1], occurrence={"AU28": [0, 1]})],
        ["AU4", "AU28"],
        not_learned=["AU28"],
        warnings=["Never seen."],
    )
    found = {row["au"]: (row["status"], row["learned"]) for _, row in aus[aus["similarity"] == "model"].iterrows()}
    assert found == {
        "AU4": ("never_present", "yes"),
        "AU9": ("no_prompt", "no"),
        "AU12": ("no_prompt", "no"),
        "AU28": ("not_learned", "no"),
        "AU45": ("no_prompt", "no"),
    }
    assert {*aus["warnings"], *subjects["warnings"]} == {"Never seen."}
    assert row_of(aus, "AU28")["reason"] == "the backbone never learned this action unit; its figures mean nothing"
    assert subjects[subjects["au"] == "AU28"]["status"].tolist() == ["not_learned"] * 4
    two = [
        coded("a", [0, 1], occurrence={"AU4": [1, 1]}),
        coded("b", [0, 1], occurrence={"AU4": [0, 0], "AU12": [NAN, NAN]}),
    ]
    found = {row["au"]: row["reason"] for _, row in compare(two, COLUMNS)[0].iterrows()}
    assert found["AU4"] == "no subject has windows with and windows without it"
    assert found["AU12"] == "no window has enough codable frames"


def test_a_window_has_the_coding_of_most_of_its_frames() -> None:
    base = coded("a", [0, 0, 0, 0, 0, 0, 0, 0], AU4=[0, 2, 4, NAN, NAN, NAN, NAN, 1])
    clip = replace(base, windows=np.array([[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [1, 2, 3, 4]]))
    share, intensity = clip.coded("AU4", present_from=1.0)
    assert np.array_equal(share, [2 / 3, NAN, NAN, 1.0], equal_nan=True)
    assert np.array_equal(intensity, [2.0, NAN, NAN, 3.0], equal_nan=True)


# --- the measure on faces whose activations are known

FPS = 25
LEARNED = {"AU9": (6, 22), "AU12": (16, 34), "AU25": (28, 44), "AU43": (2, 12)}
"""First frame, and first frame after, in which an AU is active."""
Truth = dict[str, pd.DataFrame]
"""Clip id → intensities 0 to 5 per frame and AU."""


@dataclass(frozen=True)
class Rendered:
    """Clips of three people, what is true of them, and their windows without coding."""

    clips: list[Clip]
    truth: Truth
    windows: dict[str, CodedClip]

    def compared(self, coding: Path) -> pd.DataFrame:
        """AU → figures of the backbone under this coding."""
        matched = match_coding(read_coding(coding), self.clips)
        assert set(matched.codings) == set(self.windows) and matched.unmatched == ()
        clips = [replace(self.windows[clip_id], coding=own) for clip_id, own in matched.codings.items()]
        aus, _ = compare(clips, action_unit_columns(phrases(VOCABULARY)))
        return aus[aus["similarity"] == "backbone"].set_index("au").loc[list(LEARNED)]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """Two people who each act four AUs in turn, faintly at first."""
    folder, backbone = tmp_path_factory.mktemp("rendered"), load_backbone(BackboneConfig())
    checkpoint = fake_checkpoint(phrases=phrases(VOCABULARY), backbone=backbone, window=WindowSpec(length=6))
    source, found = Source(checkpoint, backbone), Rendered([], {}, {})
    every = FrameSpec(backbone.preprocessing, Sampling(None))
    for subject in ("anna", "bo"):
        truth = pd.DataFrame(0, index=range(48), columns=list(RENDERED))
        for code, (start, end) in LEARNED.items():
            truth.loc[start : end - 1, code] = [2] * 4 + [4] * (end - start - 4)
        person = draw_identity(len(subject), resting_bias=0.0)
        frames = np.stack([render(person, intensities / 5) for intensities in truth.to_numpy()])
        clip = Clip(f"{subject}_c0", subject, str(folder / f"{subject}_c0.mp4"), "target")
        write_mp4(clip.source, frames, fps=FPS)
        features = encode_clip(clip, backbone, every)
        found.clips.append(clip)
        found.truth[clip.clip_id] = truth
        found.windows[clip.clip_id] = CodedClip.of(source, features, torch.zeros(()), ClipCoding(()))
    return found


def spans(values: pd.Series) -> list[tuple[int, int, str]]:
    """First frame, first frame after it, and letter of the intensity, of every run of one intensity."""
    runs = (values.diff() != 0).cumsum()
    return [(run.index[0], run.index[-1] + 1, " ABCDE"[run.iloc[0]]) for _, run in values.groupby(runs) if run.iloc[0]]


def write_intervals(truth: Truth, folder: Path) -> Path:
    rows = [
        f"{clip_id};{code.removeprefix('AU')}{letter};{start / FPS};{end / FPS}"
        for clip_id, table in truth.items()
        for code in RENDERED
        for start, end, letter in spans(table[code])
    ]
    path = folder / "all clips.csv"
    path.write_text("\n".join(["clip;au;onset;offset", *rows]).replace(".", ","), encoding="utf-8-sig")
    return path


def write_elan(truth: Truth, folder: Path) -> Path:
    for clip_id, table in truth.items():
        slots, tiers = [], []
        for code in RENDERED:
            notes = []
            for start, end, letter in spans(table[code]):
                names = f"ts{len(slots)}", f"ts{len(slots) + 1}"
                slots += [
                    f'<TIME_SLOT TIME_SLOT_ID="{name}" TIME_VALUE="{frame * 1000 // FPS}"/>'
                    for name, frame in zip(names, (start, end), strict=True)
                ]
                edges = f'TIME_SLOT_REF1="{names[0]}" TIME_SLOT_REF2="{names[1]}"'
                notes.append(
                    f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a{names[0]}" {edges}><ANNOTATION_VALUE>{letter}'
                    "</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>"
                )
            tiers.append(f'<TIER TIER_ID="{code}" LINGUISTIC_TYPE_REF="AU">{"".join(notes)}</TIER>')
        body = f"<TIME_ORDER>{''.join(slots)}</TIME_ORDER>{''.join(tiers)}"
        (folder / f"{clip_id}.eaf").write_text(f"<ANNOTATION_DOCUMENT>{body}</ANNOTATION_DOCUMENT>")
    return folder


def write_disfa(truth: Truth, folder: Path) -> Path:
    for clip_id, table in truth.items():
        (folder / clip_id).mkdir()
        for code in table:
            lines = [f"{frame},{value}\n" for frame, value in enumerate(table[code], 1)]
            (folder / clip_id / f"{clip_id}_{code.lower()}.txt").write_text("".join(lines))
    return folder


def write_bp4d(truth: Truth, folder: Path) -> Path:
    """Occurrence: the first frame of each clip is marked as not codable."""
    for clip_id, table in truth.items():
        rows = (table > 0).astype(int).rename(columns=lambda code: code.removeprefix("AU"))
        rows.iloc[0] = 9
        rows.insert(0, "0", range(1, len(rows) + 1))
        (folder / f"{clip_id}.csv").write_text(rows.to_csv(index=False))
    return folder


@pytest.mark.parametrize("write", [write_intervals, write_elan, write_disfa, write_bp4d])
def test_true_activations_are_recognized_in_every_format(
    rendered: Rendered, tmp_path: Path, write: Callable[[Truth, Path], Path]
) -> None:
    figures = rendered.compared(write(rendered.truth, tmp_path))
    assert figures["roc_auc"].min() > 0.95 and figures["spearman"].min() > 0.7
    assert figures["roc_auc_others"].max() < 0.6  # other prompts do not know of it
    assert write is write_bp4d or figures["icc"].min() > 0.9
    assert figures["num_windows_not_coded"].tolist() == [0] * 4 and figures["num_subjects"].tolist() == [2] * 4


def test_shuffled_and_shifted_coding_is_told_apart(rendered: Rendered, tmp_path: Path) -> None:
    def mean_auc(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> float:
        folder = tmp_path / name
        folder.mkdir()
        changed = {clip_id: change(table[list(LEARNED)]) for clip_id, table in rendered.truth.items()}
        return float(rendered.compared(write_bp4d(changed, folder))["roc_auc"].mean())

    def shuffled(seed: int) -> float:
        return mean_auc(f"shuffled {seed}", lambda table: table.sample(frac=1, random_state=seed, ignore_index=True))

    assert mean_auc("true", lambda table: table) > 0.99
    assert 0.4 < np.mean([shuffled(seed) for seed in range(8)]) < 0.6
    assert mean_auc("shifted", lambda table: pd.concat([table[24:], table[:24]], ignore_index=True)) < 0.2
