"""Figures of a report, by their pixels; rank correlations and window truth by literal figures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from clipautt.evaluation.reports import figures
from clipautt.evaluation.reports.figures import (
    HELPED,
    HURT,
    agreement_bars,
    clip_story,
    confusion_matrices,
    method_bars,
    prior_lines,
    subject_bars,
)
from clipautt.evaluation.reports.fonts import shorten
from clipautt.evaluation.reports.tables import ASSUMED_SHARES, method_table
from clipautt.evaluation.stories import AuAgreement, ClipStory, au_agreement, truth_of_windows

WINDOW_OVER_WHITE = (207, 235, 248)  # #56B4E9 at 28%
BURST = (230, 159, 0)


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def count(path: Path, colour: str | tuple[int, ...]) -> int:
    """Pixels of about this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)] if isinstance(colour, str) else list(colour)
    return int((np.abs(pixels(path).astype(int) - wanted).max(-1) <= 3).sum())


def changes(values: list[float]) -> pd.DataFrame:
    ordered = sorted(values, reverse=True)
    after = [0.5 + value for value in ordered]
    return pd.DataFrame(
        {"person": [f"s{i}" for i in range(len(values))], "before": 0.5, "after": after, "change": ordered}
    )


def draw_changes(path: Path, values: list[float]) -> Path:
    people = changes(values)
    return subject_bars(path, uar=people, war=people, against="CLIP-AU", title="new")


def test_colours_tell_who_was_helped_and_who_was_hurt(tmp_path: Path) -> None:
    gained = draw_changes(tmp_path / "gained.png", [0.2, 0.1, 0.0])
    lost = draw_changes(tmp_path / "lost.png", [-0.2, -0.1])
    assert count(gained, HELPED) > 10_000 and count(gained, HURT) == 0
    assert count(lost, HURT) > 10_000 and count(lost, HELPED) == 0


def test_many_subjects_stay_on_one_screen(tmp_path: Path) -> None:
    many = draw_changes(tmp_path / "many.png", list(np.linspace(-0.2, 0.3, 60)))
    assert pixels(many).shape[0] < 1100
    assert count(many, HELPED) > count(many, HURT) > 10_000


def test_equal_figures_are_equal_files(tmp_path: Path) -> None:
    first, second = (draw_changes(tmp_path / f"{name}.png", [0.1, -0.1]) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_confusion_is_shaded_by_the_share_of_the_true_class(tmp_path: Path) -> None:
    """Both rows are right: both diagonal cells are dark, however few videos a class has."""
    counts = np.array([[190, 0], [0, 2]])
    path = confusion_matrices(tmp_path / "c.png", [("m", counts)], classes=("neutral", "pain"), cohort="5%")
    darkest = (8, 48, 107)  # the end of the Blues scale
    area = count(path, darkest)
    none = confusion_matrices(tmp_path / "n.png", [("m", counts[::-1] * 0)], classes=("neutral", "pain"), cohort="5%")
    assert area > 20_000 and count(none, darkest) == 0


def make_story(*, burst: tuple[float, float] | None = (2.0, 3.2)) -> ClipStory:
    centres = np.arange(0.3, 4.7, 0.1)
    near = np.exp(-(((centres - 2.6) / 0.6) ** 2))
    truth = None
    if burst:
        times = np.arange(0, 5, 0.04)
        truth = pd.DataFrame({"time_seconds": times, "AU4": np.exp(-(((times - 2.6) / 0.5) ** 2)), "AU9": 0.3})
        truth["burst"] = (times >= burst[0]) & (times < burst[1])
    return ClipStory(
        clip_id="clip",
        subject_id="s",
        label="pain",
        prediction_before="neutral",
        prediction_after="pain",
        probability_before=0.3,
        probability_after=0.9,
        frames=np.full((16, 32, 24, 3), (200, 30, 160), np.uint8),
        window_start_seconds=2.3,
        window_end_seconds=2.9,
        window_times=centres,
        entropies=0.69 - 0.5 * near,
        similarities=near[:, None] * [0.2, 0.9, -0.3],
        codes=("AU1", "AU4", "AU6"),
        truth=truth,
    )


def test_story_shows_frames_window_and_burst(tmp_path: Path) -> None:
    known = clip_story(tmp_path / "known.png", make_story())
    unknown = clip_story(tmp_path / "unknown.png", make_story(burst=None))
    for path in (known, unknown):
        assert count(path, (200, 30, 160)) > 20_000
        assert count(path, WINDOW_OVER_WHITE) > 5_000
    assert count(known, BURST) > 3 * count(unknown, BURST) + 1000
    assert pixels(known).shape[0] > pixels(unknown).shape[0]


def test_story_of_one_frame_and_one_window(tmp_path: Path) -> None:
    story = make_story(burst=None)
    short = replace(
        story,
        frames=story.frames[:1],
        window_times=story.window_times[:1],
        entropies=story.entropies[:1],
        similarities=story.similarities[:1],
    )
    assert pixels(clip_story(tmp_path / "short.png", short)).shape[1] == 1500


def test_story_names_what_rose_and_says_so_where_nothing_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))

    def words(story: ClipStory) -> list[str]:
        clip_story(tmp_path / "c.png", story)
        return [text.get_text() for text in drawn[-1].findobj(Text)]

    said = words(make_story())
    assert {"AU1 Inner brow raiser", "AU4 Brow lowerer"} <= set(said) and "AU6 Cheek raiser" not in said, "it fell"
    assert "no action unit rose over its usual level" not in said
    for similarities in (-np.abs(make_story().similarities), np.full((44, 3), 0.1)):
        said = words(replace(make_story(), similarities=similarities))
        assert "no action unit rose over its usual level" in said
        assert "true intensities, grey: the strongest AUs" in said


def test_story_checks_its_shapes() -> None:
    story = make_story()
    with pytest.raises(
        ValueError, match=r"frames of 'clip' are float64 \(16, 32, 24, 3\); allowed is uint8 \[n, H, W, 3\]"
    ):
        replace(story, frames=story.frames / 255)
    with pytest.raises(ValueError, match=r"44 window times, 44 entropies and similarities \(44, 3\) for 2 codes"):
        replace(story, codes=("AU1", "AU4"))
    with pytest.raises(ValueError, match="time_seconds and burst are needed"):
        replace(story, truth=pd.DataFrame({"AU4": [0.1]}))
    assert story.selected == 23  # the window centred on 2.6 s


def test_rank_correlation_by_hand() -> None:
    """Ranks 1 2 3 4 against 1 3 2 4: rho = 1 - 6 * 2 / (4 * 15) = 0.8. What is no AU code of ours is not read."""
    truth = pd.DataFrame({"AU4": [0.0, 0.1, 0.2, 0.9], "AU6": [0.2] * 4, "AU9": [0.9, 0.5, 0.2, 0.1], "burst": True})
    before = np.array([[1.0, 1, 1, 5], [3, 2, 2, 5], [2, 3, 3, 5], [4, 4, 4, 5]])
    found = au_agreement(before, truth, ("AU4", "AU6", "AU9", "AU99"), adapted=before[:, [2, 1, 0, 3]] ** 3)
    assert [one.code for one in found] == ["AU4", "AU6", "AU9"]
    assert found[0].rho == pytest.approx(0.8)
    assert found[0].rho_adapted == pytest.approx(1.0)
    assert math.isnan(found[1].rho)
    assert found[2].rho == pytest.approx(-1.0)
    assert found[2].num_windows == 4
    assert au_agreement(before, truth, ("AU4", "AU6", "AU9", "AU99"))[0].rho_adapted is None


def test_rank_correlation_checks_its_shapes() -> None:
    truth = pd.DataFrame({"AU4": [0.0, 0.1]})
    with pytest.raises(ValueError, match=r"similarities is \(3, 1\); allowed is \[rows of truth, codes\] = \(2, 1\)"):
        au_agreement(np.zeros((3, 1)), truth, ("AU4",))
    with pytest.raises(ValueError, match=r"adapted is \(2, 2\)"):
        au_agreement(np.zeros((2, 1)), truth, ("AU4",), adapted=np.zeros((2, 2)))


def test_truth_of_windows_is_the_mean_over_their_frames() -> None:
    truth = pd.DataFrame(
        {"time_seconds": [0.0, 0.1, 0.2, 0.3], "AU4": [0.0, 0.2, 0.4, 0.9], "burst": [False, False, True, True]}
    )
    means = truth_of_windows(truth, np.array([0.0, 0.1]), np.array([0.2, 0.4]))
    assert means["AU4"].tolist() == pytest.approx([0.1, 0.5])
    assert means["burst"].tolist() == pytest.approx([0.0, 2 / 3])
    with pytest.raises(ValueError, match=r"no frame of truth lies in the window from 9\.0 to 9\.5 seconds"):
        truth_of_windows(truth, np.array([9.0]), np.array([9.5]))


def test_agreement_without_adaptation_shows_one_bar_per_unit(tmp_path: Path) -> None:
    plain = [AuAgreement("AU4", 0.8, None, 50), AuAgreement("AU6", math.nan, None, 50)]
    one = agreement_bars(tmp_path / "one.png", plain)
    two = agreement_bars(tmp_path / "two.png", [replace(plain[0], rho_adapted=0.9), plain[1]])
    assert count(one, "#0072B2") == 0 < count(two, "#0072B2")


def test_shorten() -> None:
    assert shorten("subject", 7) == "subject"
    assert shorten("a very long name", 9) == "a ver…ame"


def prior_figures(methods: tuple[str, ...], *, cohorts: tuple[str, ...] = ("balanced",)) -> pd.DataFrame:
    """As from `prior_table`: three assumed shares, the last as the decisions stand."""
    shares = [(0.5, True), (0.05, False), (0.2, False), (0.5, False)]
    return pd.DataFrame(
        {"method": method, "cohort": cohort, "assumed_share": share, "own": own, "uar": 0.6 + share * gain}
        | {"war": 0.9 - share * gain, "majority_uar": 0.5, "majority_war": 0.95, "positive_share": 0.1}
        for gain, method in enumerate(methods)
        for cohort in cohorts
        for share, own in shares
    )


def test_lines_over_assumed_shares_mark_the_truth_and_the_default(tmp_path: Path) -> None:
    both = prior_lines(
        tmp_path / "both.png", prior_figures(("old", "new", "other")), reference="old", personalized="new"
    )
    true_share = (243, 214, 140)  # #E69F00 at 45%
    assert count(both, true_share) > 4_000
    assert count(both, "#0072B2") > 1_500 and count(both, "#8C96A3") > 1_500
    alone = prior_lines(tmp_path / "alone.png", prior_figures(("old",)), reference="old", personalized="new")
    assert count(alone, "#0072B2") < 500 < count(alone, "#8C96A3")


def test_a_panel_per_cohort_over_assumed_shares(tmp_path: Path) -> None:
    cohorts = ("balanced", "20%", "5%")
    wide = prior_lines(
        tmp_path / "wide.png", prior_figures(("old", "new"), cohorts=cohorts), reference="old", personalized="new"
    )
    narrow = prior_lines(tmp_path / "one.png", prior_figures(("old", "new")), reference="old", personalized="new")
    assert (pixels(narrow).shape[1], pixels(wide).shape[1]) == (675, 1665)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that would be saved, as an object."""
    kept: list[Figure] = []

    def keep(figure: Figure, path: Path) -> Path:
        kept.append(figure)
        return path

    monkeypatch.setattr(figures, "save", keep)
    return kept


def touching(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts of a figure whose boxes overlap; ticks outside the axes are not drawn and do not count."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = [axis for one in figure.axes for axis in (one.xaxis, one.yaxis)]
    outside = {
        tick.label1
        for axis in axes
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    seen = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in seen if text not in outside]
    return [(one, other) for n, (one, a) in enumerate(boxes) for other, b in boxes[n + 1 :] if a.overlaps(b)]


def test_the_search_for_touching_texts_finds_some() -> None:
    figure = Figure()
    figure.text(0.5, 0.5, "one")
    figure.text(0.5, 0.51, "two")
    assert touching(figure) == [("one", "two")]


@pytest.mark.parametrize("num_people", [2, 20, 30, 40])
def test_no_text_touches_another_for_so_many_subjects(tmp_path: Path, drawn: list[Figure], num_people: int) -> None:
    names = [f"a-long-name-of-a-subject-{i:03d}, seed 2" for i in range(num_people)]
    uar = changes(list(np.linspace(-0.35, 0.6, num_people))).assign(person=names)
    for war in (uar, uar.assign(change=uar["change"] / 2 - 0.1)):
        subject_bars(tmp_path / "who.png", uar=uar, war=war, against="CLIP-AU, best window", title="the default")
        assert touching(drawn[-1]) == []
    assert len(drawn[0].axes) == 1, "equal panels are drawn once"
    assert len(drawn[1].axes) == 2


def test_no_text_touches_another_over_assumed_shares(tmp_path: Path, drawn: list[Figure]) -> None:
    shares = sorted([*ASSUMED_SHARES, 0.12, 0.22])
    one = prior_figures(("old", "new"), cohorts=("balanced", "20%", "5%"))
    table = pd.concat([one[one["own"]], *(one[~one["own"]].assign(assumed_share=share) for share in shares)])
    prior_lines(tmp_path / "p.png", table, reference="old", personalized="new")
    assert touching(drawn[-1]) == []
    ticks = [label.get_text() for label in drawn[-1].axes[-1].get_xticklabels()]
    assert ticks == ["5%", "10%", "20%", "30%", "50%", "70%"]


def test_no_text_touches_another_in_a_long_list_of_methods(tmp_path: Path, drawn: list[Figure]) -> None:
    names = [f"CLIP-AUTT infomax, per subject, peak window, median baseline, balance weight {n}" for n in range(14)]
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(
        {"method": name, "split": "target", "cohort": cohort, "seed": 0, "subject_id": f"s{subject}"}
        | {"war": 0.8, "uar": rng.uniform(0.5, 1), "f1": 0.7, "num_clips": 20.0, "positive_share": share}
        | {"majority_war": 1 - share, "majority_uar": 0.5, "majority_f1": 0.4}
        for name in names
        for cohort, share in (("balanced", 0.5), ("20%", 0.2), ("5%", 0.05))
        for subject in range(8)
    )
    table = method_table(scores, reference=names[0])
    method_bars(
        tmp_path / "m.png",
        table,
        [("Without subject baseline", names[:8]), ("With median subject baseline", names[8:])],
        reference=names[0],
        personalized=names[-1],
    )
    assert touching(drawn[-1]) == []


def test_no_text_touches_another_over_a_clip_and_over_action_units(tmp_path: Path, drawn: list[Figure]) -> None:
    clip_story(tmp_path / "c.png", replace(make_story(), clip_id="a-clip-of-which-the-name-is-very-long-indeed-0001"))
    agreement_bars(tmp_path / "a.png", [AuAgreement(f"AU{n}", 0.9, 0.95, 50) for n in (1, 4, 6, 12)])
    assert [touching(figure) for figure in drawn] == [[], []]
