"""The adaptation job: what it writes, what it keeps, what it tells. Actors are real where processes matter.

Elsewhere `run_here` stands for the pool: starting an actor takes seconds, and `test_actors_and_order_change_nothing`
shows that actors change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from clipautt.adaptation.driver import History, Unit, adapt, adapt_units
from clipautt.adaptation.method import AdaptConfig, Session
from clipautt.adaptation.methods.t3a import T3A
from clipautt.adaptation.methods.tda import TDA
from clipautt.adaptation.personalization import clips_of_personalization, load_personalization
from clipautt.adaptation.priors import assume_share
from clipautt.clips import Clip
from clipautt.evaluation.results import EVERY, Cohort, predicted
from clipautt.footage import truth_path
from clipautt.manifest import write_manifest
from ray_jobs import cli
from ray_jobs.adapt.actor import AdaptActor
from ray_jobs.adapt.job import print_not_predicted
from ray_jobs.adapt.plan import Assignment, SubjectWork
from ray_jobs.adapt.run import WorkConfig
from ray_jobs.platform.methods import make_methods
from tests.support import stored
from tests.support.adapting import (
    World,
    assert_same_results,
    features_of,
    in_order,
    loaded,
    make_world,
    run_adaptation,
    run_here,
)
from tests.support.configs import adapt_config, changed

pytestmark = pytest.mark.usefixtures("local_ray")
PER_SUBJECT = adapt_config(objective="infomax_kl", steps=3, learning_rate=0.1)
ONLINE = changed(PER_SUBJECT, protocol="online")
PER_VIDEO = changed(PER_SUBJECT, objective="entropy", protocol="per_video")
CACHE = AdaptConfig(TDA(on="windows"), protocol="online")
PROTOTYPES = AdaptConfig(T3A(), protocol="online")
CLIP_AU = adapt_config()
TUNED = ["adapt=infomax_kl", "adapt.method.steps=3", "adapt.method.learning_rate=0.1"]
"""The words for `PER_SUBJECT`."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Four subjects with four clips each."""
    return make_world(tmp_path_factory.mktemp("world"), subjects=4, per_subject=4)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No actors, see `run_here`."""
    monkeypatch.setattr("ray_jobs.adapt.job.run_pool", run_here)


def run(world: World, name: str, *methods: AdaptConfig, **options: Any) -> tuple[pd.DataFrame, dict[str, str]]:
    """`run_adaptation`, its rows in order."""
    clips = options.pop("clips", world.clips)
    cohorts = options.pop("cohorts", [Cohort()])
    rows, failed = run_adaptation(world.job(name, *methods), world.read(), clips, cohorts, **options)
    return in_order(rows), failed


def times_of(folder: Path) -> dict[str, int]:
    """When each file of a folder was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


def of_every_clip(rows: pd.DataFrame, method: AdaptConfig) -> pd.DataFrame:
    """Clip → row of a method."""
    return rows[(rows["cohort"] == EVERY) & (rows["method"] == method.name)].set_index("clip_id")


# ---- what is computed ------------------------------------------------------------------------------------------------


def test_actors_and_order_change_nothing(world: World) -> None:
    """One actor with all subjects together, two with one subject at a time and clips listed backwards."""
    methods = [PER_SUBJECT, ONLINE, PER_VIDEO, CLIP_AU]
    rows, failed = run(world, "one", *methods, work=WorkConfig(actors=1))
    others, others_failed = run(
        world, "two", *methods, clips=world.clips[::-1], work=WorkConfig(actors=2, clips_per_task=4)
    )
    assert failed == others_failed == {}
    assert len(rows) == 4 * (16 + 16) and set(rows["status"]) == {"ok"}
    assert_same_results(others, rows)


@pytest.mark.slow
def test_eight_actors_change_nothing(tmp_path: Path) -> None:
    eight = make_world(tmp_path, subjects=8, per_subject=4)
    methods = [PER_SUBJECT, ONLINE, PER_VIDEO, CLIP_AU]
    found = [run(eight, f"{n}", *methods, work=WorkConfig(actors=n, clips_per_task=4))[0] for n in (8, 2, 1)]
    assert_same_results(found[0], found[2])
    assert_same_results(found[1], found[2])


@pytest.mark.usefixtures("here")
def test_the_job_gives_what_adapt_gives(world: World) -> None:
    """Of every clip; and a cohort is adapted to by its own clips only."""
    methods = [changed(PER_SUBJECT, subject_baseline="median"), ONLINE, PER_VIDEO, CLIP_AU]
    rows, _ = run(world, "plain", *methods, cohorts=[Cohort(0.2)])
    for method in methods:
        for subject, cohort in (("s1", EVERY), ("s2", "20%")):
            own = rows[(rows["method"] == method.name) & (rows["cohort"] == cohort) & (rows["subject_id"] == subject)]
            clips = [clip for clip in loaded(world, subject) if clip.clip_id in set(own["clip_id"])]
            assert len(clips) == (4 if cohort == EVERY else 3)
            expected = adapt(world.source(method.subject_baseline), clips, method)[subject].predictions
            numbers = own.set_index("clip_id").loc[[p.clip_id for p in expected], "probability"]
            np.testing.assert_allclose(numbers, [float(p.probabilities[-1]) for p in expected], atol=1e-5)
            if cohort == EVERY and method.protocol == "online":
                assert own.sort_values("position")["clip_id"].tolist() == [p.clip_id for p in expected]


@pytest.mark.usefixtures("here")
def test_company_changes_no_number(world: World) -> None:
    """At the default step size: all subjects together, or each alone."""
    usual = adapt_config(objective="infomax_kl", protocol="online")
    rows, _ = run(world, "company", usual, cohorts=[])
    others, _ = run(world, "no-company", usual, cohorts=[], work=WorkConfig(clips_per_task=1))
    assert_same_results(others, rows)


@pytest.mark.usefixtures("here")
def test_labels_change_no_prediction(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No work that an actor is given holds a label; and with all labels turned round it predicts the same."""
    given: list[SubjectWork] = []

    def spied(make_actor: Any, arguments: Any, tasks: Any, **options: Any) -> Any:
        tasks = list(tasks)
        given.extend(one for task in tasks for one in task)
        return run_here(make_actor, arguments, tasks, **options)

    monkeypatch.setattr("ray_jobs.adapt.job.run_pool", spied)
    turned = [replace(clip, label="pain" if clip.label == "neutral" else "neutral") for clip in world.clips]
    rows, _ = run(world, "labels", PER_SUBJECT, ONLINE)
    others, _ = run(world, "turned", PER_SUBJECT, ONLINE, clips=turned)
    assert {clip.label for one in given for clip in one.clips} == {None} and len(given) == 8
    assert (rows["label"] != others["label"]).all()
    everything, others = (one[one["cohort"] == EVERY].drop(columns="label") for one in (rows, others))
    pd.testing.assert_series_equal(others["probability"], everything["probability"])


@pytest.mark.usefixtures("here")
def test_a_report_is_advised_only_where_there_are_labels(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unlabelled = tmp_path / "unlabelled.parquet"
    write_manifest([replace(clip, label=None) for clip in world.clips], unlabelled, classes=("neutral", "pain"))
    for name, manifest in (("advised", None), ("not_advised", unlabelled)):
        assert cli.main(["adapt", *world.words(name, *TUNED, manifest=manifest)]) == 0
        said = capsys.readouterr().out
        assert ("no labels to compare with" in said) == (manifest is not None)
        assert ("`clipautt report run=" in said) == (manifest is None)


# ---- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("method", [PER_VIDEO, ONLINE, CACHE, PROTOTYPES], ids=lambda method: str(method.name))
def test_new_clips_extend_their_subject(world: World, method: AdaptConfig) -> None:
    """What stands is kept, number for number; files of subjects without new clips are not touched."""
    name = f"extended-{method.method.name}-{method.protocol}"
    part = [clip for clip in world.clips if clip.clip_id not in ("s0c1", "s0c2", "s2c0")]
    before, _ = run(world, name, method, CLIP_AU, clips=part, cohorts=[])
    kept = times_of(world.run(name) / "subjects")
    after, _ = run(world, name, method, CLIP_AU, cohorts=[])
    assert {file for file, time in times_of(world.run(name) / "subjects").items() if time != kept[file]} == {
        "s0.parquet",
        "s2.parquet",
    }
    again = after[after["clip_id"].isin(before["clip_id"])].reset_index(drop=True)
    columns = [column for column in before.columns if column != "manifest"]
    pd.testing.assert_frame_equal(again[columns], before[columns])
    assert set(after["clip_id"]) == {clip.clip_id for clip in world.clips}
    expected = in_visiting_order(world, "s0", method, of_every_clip(after, method))
    np.testing.assert_allclose(
        of_every_clip(after, method).loc[list(expected), "probability"], list(expected.values()), atol=1e-5
    )


def in_visiting_order(world: World, subject: str, method: AdaptConfig, rows: pd.DataFrame) -> dict[str, float]:
    """Clip → probability of an adaptation that is handed a subject's clips one by one, in the order of the rows."""
    session = Session.open(world.source(), method)
    clips = {clip.clip_id: clip for clip in loaded(world, subject)}
    own = rows[rows["subject_id"] == subject]
    order = list(own.index) if method.protocol == "per_video" else list(own.sort_values("position").index)
    assert method.protocol == "per_video" or sorted(own["position"]) == list(range(len(own)))
    found, history = {}, None
    for number, clip_id in enumerate(order):
        (result,) = adapt_units(session, [Unit(subject, (clips[clip_id],), history)])
        found[clip_id] = float(result.predictions[0].probabilities[-1])
        if method.protocol == "online":
            history = History(result.after, tuple(clips[name] for name in order[: number + 1]))
    return found


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("method", [ONLINE, CACHE, PROTOTYPES], ids=lambda method: str(method.method.name))
def test_an_online_run_is_resumed_from_its_saved_state(
    world: World, monkeypatch: pytest.MonkeyPatch, method: AdaptConfig
) -> None:
    """The state of the file is what an undisturbed run has after the same clips, and only new clips are visited."""
    given: list[Assignment] = []

    def spied(make_actor: Any, arguments: Any, tasks: Any, **options: Any) -> Any:
        tasks = list(tasks)
        given.extend(one for task in tasks for work in task for one in work.assignments)
        return run_here(make_actor, arguments, tasks, **options)

    name, clips = f"resumed-{method.method.name}", world.clips[:4]
    run(world, name, method, clips=clips[:2], cohorts=[])
    monkeypatch.setattr("ray_jobs.adapt.job.run_pool", spied)
    rows, _ = run(world, name, method, clips=clips, cohorts=[])
    own = of_every_clip(rows, method)
    order = own.sort_values("position").index.tolist()
    assert given == [Assignment(method, ("s0c2", "s0c3"), tuple(order[:2]), groups=frozenset({(EVERY, 0)}), keep=True)]
    assert set(order[:2]) == {"s0c0", "s0c1"}
    # At once, in the order in which the clips came.
    features = {clip.clip_id: clip for clip in loaded(world, "s0")}
    session = Session.open(world.source(), method)
    (whole,) = adapt_units(session, [Unit("s0", tuple(features[clip_id] for clip_id in order), in_order=True)])
    assert [prediction.clip_id for prediction in whole.predictions] == order
    np.testing.assert_allclose(
        own.loc[order, "probability"], [float(p.probabilities[-1]) for p in whole.predictions], atol=1e-5
    )
    kept, expected = (
        load_personalization(world.job(name, method).prompts("s0"), world.source()),
        method.method.save(whole.after.state),
    )
    assert kept.clips == tuple(order) and kept.saved.tensors.keys() == expected.tensors.keys()
    assert any(len(tensor) for tensor in expected.tensors.values()), "there is something to resume from"
    for part, tensor in expected.tensors.items():
        torch.testing.assert_close(kept.saved.tensors[part], tensor, atol=1e-5, rtol=1e-5)
    # What the first two clips left behind counts for the others.
    (anew,) = adapt_units(session, [Unit("s0", tuple(features[clip_id] for clip_id in order[2:]), in_order=True)])
    pairs = zip(anew.predictions, whole.predictions[2:], strict=True)
    assert any(abs(float(a.probabilities[-1] - b.probabilities[-1])) > 1e-4 for a, b in pairs)


@pytest.mark.usefixtures("here")
def test_where_other_clips_count_a_new_one_has_its_subject_done_anew(world: World) -> None:
    part = [clip for clip in world.clips if clip.clip_id != "s1c3"]
    run(world, "anew", PER_SUBJECT, clips=part)
    after, _ = run(world, "anew", PER_SUBJECT)
    expected, _ = run(world, "anew-at-once", PER_SUBJECT)
    assert_same_results(after, expected)


@pytest.mark.usefixtures("here")
def test_prompts_that_an_online_run_leaves_name_their_clips_in_order(world: World) -> None:
    rows, _ = run(world, "left", ONLINE, clips=world.clips[:2], cohorts=[])
    rows, _ = run(world, "left", ONLINE, clips=world.clips[:4], cohorts=[])
    path = world.job("left", ONLINE).prompts("s0")
    assert clips_of_personalization(path) == tuple(rows.sort_values("position")["clip_id"])
    assert load_personalization(path, world.source()).config == ONLINE


def test_work_that_is_done_twice_gives_the_same(world: World) -> None:
    """The pool gives work again whose worker was lost after it had written prompts."""
    job = world.job("twice", ONLINE)
    actor = AdaptActor(job, 1)
    clips = tuple(replace(clip, label=None) for clip in world.clips[:4])
    actor.run([SubjectWork("s0", clips, (Assignment(ONLINE, ("s0c0", "s0c1"), keep=True),))])
    assert not job.prompts("s0").exists(), "they belong to rows, which are not written yet"
    job.fresh_prompts("s0").replace(job.prompts("s0"))
    history = clips_of_personalization(job.prompts("s0"))
    assert history is not None
    work = SubjectWork("s0", clips, (Assignment(ONLINE, ("s0c2", "s0c3"), history, keep=True),))
    first, second = (actor.run([work])[0][0].predictions for _ in range(2))
    assert [p.clip_id for p in second] == [p.clip_id for p in first]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(other.probabilities, one.probabilities, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("here")
def test_an_extension_that_was_killed_after_its_prompts_gives_the_undisturbed_rows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = [clip for clip in world.clips if clip.clip_id not in ("s0c1", "s0c2")]
    for name in ("undisturbed", "killed"):
        run(world, name, ONLINE, clips=part, cohorts=[])
    expected, _ = run(world, "undisturbed", ONLINE, cohorts=[])

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ray_jobs.adapt.results.write_rows", die)
        with pytest.raises(KeyboardInterrupt):
            run(world, "killed", ONLINE, cohorts=[])
    found, _ = run(world, "killed", ONLINE, cohorts=[])
    assert_same_results(found, expected)


@pytest.mark.usefixtures("here")
def test_explaining_an_extended_run_changes_no_result(world: World) -> None:
    part = [clip for clip in world.clips if clip.clip_id not in ("s0c1", "s0c2")]
    run(world, "told", ONLINE, clips=part, cohorts=[])
    before, _ = run(world, "told", ONLINE, cohorts=[])
    rows, _ = run_adaptation(world.job("told", ONLINE, explain=True), world.read(), world.clips)
    assert (world.run("told") / "explain" / "s0" / "windows.csv").is_file()
    assert_same_results(in_order(rows), before)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("method", [PER_VIDEO, ONLINE], ids=lambda method: str(method.protocol))
def test_explanations_of_an_extended_run_are_those_of_an_undisturbed_one(
    world: World, monkeypatch: pytest.MonkeyPatch, method: AdaptConfig
) -> None:
    """Killed before anything is written, after an explanation and before its rows; and explained again at the end."""

    def explained(name: str, clips: Sequence[Clip], *, explain: bool = True) -> dict[str, str]:
        job = world.job(f"{name}-{method.protocol}", method, explain=explain)
        run_adaptation(job, world.read(), clips)
        folder = Path(job.folder) / "explain"
        return {str(path.relative_to(folder)): path.read_text() for path in folder.glob("*/*")}

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    explained("calm", world.clips[:6])
    expected = explained("calm", world.clips[:8])
    explained("killed", world.clips[:6])
    for target in ("ray_jobs.adapt.actor.save_personalization", "ray_jobs.adapt.results.write_rows"):
        with monkeypatch.context() as patch:
            patch.setattr(target, die)
            with pytest.raises(KeyboardInterrupt):
                explained("killed", world.clips[:8])
    assert explained("killed", world.clips[:8]) == expected
    assert set(json.loads(expected["s1/explanation.json"])["clip_ids"]) == {"s1c0", "s1c1", "s1c2", "s1c3"}
    explained("late", world.clips[:6])
    explained("late", world.clips[:8], explain=False)
    assert explained("late", world.clips[:8]) == expected


@pytest.mark.usefixtures("here")
def test_clips_without_features_get_a_row_that_says_why(tmp_path: Path) -> None:
    """One clip of a subject and every clip of another one; once they have features, only these subjects are done."""
    world = make_world(tmp_path, subjects=3, per_subject=4)
    late = [stored.clip_at(tmp_path / "videos", name) for name in ("s1c4", "s3c0", "s3c1")]
    late = [replace(c, subject_id=c.clip_id[:2], label=("neutral", "pain")[int(c.clip_id[-1]) % 2]) for c in late]
    clips = (*world.clips, *late)
    lost = {clip.clip_id for clip in late}
    rows, failed = run(world, "late", PER_SUBJECT, CLIP_AU, clips=clips, reasons=dict.fromkeys(lost, "no face"))
    assert not failed
    empty = rows[rows["prediction"] == ""]
    assert set(empty["clip_id"]) == lost and set(empty["status"]) == {"no features: no face"}
    assert empty["probability"].isna().all() and set(empty["label"]) == {"neutral", "pain"}
    assert len(empty) == 2 * 3 and set(empty["cohort"]) == {EVERY}
    kept = times_of(world.run("late") / "subjects")
    assert run(world, "late", PER_SUBJECT, CLIP_AU, clips=clips)[0].equals(rows)
    assert times_of(world.run("late") / "subjects") == kept
    world.store.append([stored.row(clip, features_of(clip)) for clip in late])
    rows, _ = run(world, "late", PER_SUBJECT, CLIP_AU, clips=clips)
    assert len(predicted(rows)) == len(rows)
    now = times_of(world.run("late") / "subjects")
    assert {name for name in now if now[name] != kept[name]} == {"s1.parquet", "s3.parquet"}


# ---- what fails ------------------------------------------------------------------------------------------------------


def bad_world(folder: Path) -> tuple[World, list[Clip]]:
    """A world with a fourth subject whose features have no finite prediction."""
    world = make_world(folder, subjects=3, per_subject=4)
    bad = [
        replace(stored.clip_at(folder / "videos", f"s3c{c}"), subject_id="s3", label=("neutral", "pain")[c % 2])
        for c in range(4)
    ]
    world.store.append([stored.row(clip, np.full((12, 128), np.float32(3e38))) for clip in bad])
    return replace(world, clips=(*world.clips, *bad)), bad


@pytest.mark.parametrize("method", [PER_SUBJECT, ONLINE, PER_VIDEO])
def test_clips_that_show_too_little_of_a_face_have_a_row_with_the_reason(
    tmp_path: Path, here: None, capsys: pytest.CaptureFixture[str], method: AdaptConfig
) -> None:
    """Also a subject without any other clip; a second start does nothing, and a new clip extends its subject."""
    faceless = ["s0c1", "s1c0", "s1c1", "s1c2"]
    world = make_world(tmp_path, subjects=2, per_subject=3, faceless=faceless)
    late = [clip for clip in world.clips if clip.clip_id == "s0c2"]
    first = [clip for clip in world.clips if clip not in late]
    name = method.protocol
    rows, failed = run(world, name, method, CLIP_AU, clips=first, cohorts=[])
    assert not failed
    without = rows[rows["prediction"] == ""]
    assert sorted(set(without["clip_id"])) == faceless and len(without) == 2 * len(faceless)
    assert without["status"].str.startswith("no prediction: the face is found in 2 of ").all()
    assert without["probability"].isna().all() and (without["face_share"] < 0.2).all()
    assert (predicted(rows)["face_share"] == 1.0).all() and (predicted(rows)["status"] == "ok").all()
    written = times_of(world.run(name) / "subjects")
    again, _ = run(world, name, method, CLIP_AU, clips=first, cohorts=[])
    assert times_of(world.run(name) / "subjects") == written
    assert_same_results(again, rows)
    extended, _ = run(world, name, method, CLIP_AU, clips=world.clips, cohorts=[])
    undisturbed, _ = run(world, f"{name}-at-once", method, CLIP_AU, clips=world.clips, cohorts=[])
    if method is not ONLINE:  # the new clip comes last there
        compared = ["clip_id", "method", "prediction", "status"]
        pd.testing.assert_frame_equal(extended[compared], undisturbed[compared])
    assert set(extended["clip_id"]) == {clip.clip_id for clip in world.clips}


def test_the_command_says_which_clips_have_no_prediction_and_how_much_of_a_face_there_is(
    tmp_path: Path, here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path, subjects=2, per_subject=3, faceless=["s0c1"])
    assert cli.main(["adapt", *world.words("a", *TUNED, "explain=true")]) == 0
    said = capsys.readouterr().out
    assert "face found in" in said and "% of the frames of 6 clips" in said
    assert "1 clip without a prediction" in said and "s0c1" in said and "the face is found in 2 of" in said
    assert "every method" in said
    assert world.rows("a").set_index("clip_id").loc["s0c1", "prediction"].eq("").all()
    explained = times_of(world.run("a") / "explain" / "s0")
    assert cli.main(["adapt", *world.words("a", *TUNED, "explain=true")]) == 0
    assert times_of(world.run("a") / "explain" / "s0") == explained


def test_a_clip_that_one_method_predicts_is_not_said_to_have_no_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("c0", "whole clip", "no prediction: why"), ("c0", "best window", "ok"), ("c1", "best window", "ok")]
    print_not_predicted(pd.DataFrame(rows, columns=["clip_id", "method", "status"]))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("c0") and "whole clip" in last and "every method" not in last


@pytest.mark.parametrize("pool", ["here", pytest.param("real", marks=pytest.mark.slow)])
def test_a_subject_that_fails_gets_rows_and_holds_nobody_up(
    pool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one task with subjects that are well; and the same command tries it again."""
    world, bad = bad_world(tmp_path)
    if pool == "here":
        monkeypatch.setattr("ray_jobs.adapt.job.run_pool", run_here)
    words = world.words("bad", *TUNED, "work.actors=1")
    assert cli.main(["adapt", *words]) == 1
    said = capsys.readouterr().out
    assert "1 of 4 subjects failed; run the same command to try them again" in said
    assert "4/4 subjects" in said and "4 failed" in said
    rows = world.rows("bad")
    failed = rows[rows["subject_id"] == "s3"]
    assert failed["status"].str.startswith("failed: ").all() and failed["status"].str.contains("not finite").all()
    assert set(failed["prediction"]) == {""} and len(failed) == 2 * 4
    well = rows[rows["subject_id"] != "s3"]
    assert set(well["status"]) == {"ok"} and len(well) == 2 * (12 + 12)
    kept = times_of(world.run("bad") / "subjects")
    world.store.append([stored.row(clip, features_of(clip)) for clip in bad])
    monkeypatch.setattr("ray_jobs.adapt.job.run_pool", run_here)
    assert cli.main(["adapt", *words]) == 0
    rows = world.rows("bad")
    assert set(rows["status"]) == {"ok"} and len(rows) == 2 * (16 + 16)
    now = times_of(world.run("bad") / "subjects")
    assert {name for name in now if now[name] != kept[name]} == {"s3.parquet"}


@pytest.mark.usefixtures("here")
def test_what_was_predicted_stays_where_an_extension_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where only a cohort that came later fails, its clips say so."""
    part = [clip for clip in world.clips if clip.clip_id not in ("s0c1", "s0c2")]
    for name in ("kept", "kept, cohort"):
        before, _ = run(world, name, PER_SUBJECT, CLIP_AU, clips=part, cohorts=[])

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error")

    with monkeypatch.context() as patch:
        patch.setattr("ray_jobs.adapt.actor.adapt_units", fail)
        rows, failed = run(world, "kept", PER_SUBJECT, CLIP_AU, cohorts=[])
        with_cohort, _ = run(world, "kept, cohort", PER_SUBJECT, CLIP_AU, clips=part, cohorts=[Cohort(0.2)])
    assert failed == {"s0": "RuntimeError: CUDA error"}
    assert_same_results(in_order(predicted(rows)), before)
    lost = rows[rows["prediction"] == ""]
    assert sorted(lost["clip_id"]) == ["s0c1", "s0c1", "s0c2", "s0c2"]
    assert set(lost["status"]) == {"failed: RuntimeError: CUDA error"} and set(lost["cohort"]) == {EVERY}
    lost = with_cohort[(with_cohort["prediction"] == "") & (with_cohort["subject_id"] == "s1")]
    assert set(lost["cohort"]) == {"20%"} and set(lost["method"]) == {PER_SUBJECT.name} and len(lost) == 3
    again, failed = run(world, "kept", PER_SUBJECT, CLIP_AU, cohorts=[])
    assert not failed and len(predicted(again)) == len(again) == 2 * 16


@pytest.mark.usefixtures("here")
def test_a_failed_subject_has_one_row_per_clip_and_method(tmp_path: Path) -> None:
    world, _ = bad_world(tmp_path)
    rows, failed = run(world, "rows", PER_SUBJECT, CLIP_AU, cohorts=[Cohort(0.2, draws=2)])
    assert list(failed) == ["s3"]
    empty = rows[rows["subject_id"] == "s3"]
    assert len(empty) == 2 * 4


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_a_finished_run_is_not_done_again_and_refuses_other_settings(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    words = world.words("finished", *TUNED)
    assert cli.main(["adapt", *words]) == 0
    said = capsys.readouterr().out
    assert "4/4 subjects, UAR " in said and "points on 4 labelled ones" in said
    kept = times_of(world.run("finished") / "subjects") | times_of(world.run("finished") / "prompts")
    assert cli.main(["adapt", *words, "work.actors=1", "tuning.batch_size=1"]) == 0
    assert times_of(world.run("finished") / "subjects") | times_of(world.run("finished") / "prompts") == kept
    assert cli.main(["adapt", *words, "adapt.method.steps=4", "cohorts=[{share: 0.2, draws: 1}]"]) == 2
    said = capsys.readouterr().err
    assert "adapt.method.steps: 3 → 4" in said and "cohorts: " in said and "exists with other settings" in said


@pytest.mark.usefixtures("here")
def test_rows_and_summary_warn_of_footage_that_the_model_has_never_seen(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded backbone has seen rendered faces only, and one clip of the four is one."""
    one = world.clips[0]
    truth_path(one.source).touch()
    path = world.manifest(world.clips[:4], name="unseen")
    assert cli.main(["adapt", *world.words("unseen", "adapt=clip_au", "compare=[]", manifest=path)]) == 0
    truth_path(one.source).unlink()
    seen = "warning: The backbone 'embedded' was trained on rendered faces only, and "
    said = capsys.readouterr().out
    assert said.count(f"{seen}3 of 4 clips are not marked as rendered: for the face of a real person") == 2
    rows = world.rows("unseen").drop_duplicates("clip_id").set_index("clip_id")
    assert rows.loc[one.clip_id, ["warnings", "cautions", "other_faces"]].tolist() == ["", "", 0]
    for clip in world.clips[1:4]:
        assert rows.loc[clip.clip_id, "cautions"] == "unseen_footage"
        sentence = f"{seen}this video is not marked as rendered".removeprefix("warning: ")
        assert rows.loc[clip.clip_id, "warnings"].startswith(sentence)


@pytest.mark.usefixtures("here")
def test_a_subject_whose_file_is_gone_is_done_again_and_no_other(world: World) -> None:
    before, _ = run(world, "gone", PER_SUBJECT, CLIP_AU)
    results = world.run("gone") / "subjects"
    kept = times_of(results)
    (results / "s2.parquet").unlink()
    after, _ = run(world, "gone", PER_SUBJECT, CLIP_AU)
    assert_same_results(after, before)
    assert {name for name, time in times_of(results).items() if kept[name] != time} == {"s2.parquet"}


@pytest.mark.usefixtures("here")
def test_earlier_clips_that_are_gone_or_changed_are_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.manifest(world.clips[:8], name="moving")
    words = world.words("moving", "adapt=clip_au", "compare=[]", manifest=path)
    assert cli.main(["adapt", *words]) == 0
    kept = times_of(world.run("moving") / "subjects")
    world.manifest([replace(world.clips[0], label="pain"), *world.clips[2:]], name="moving")
    assert cli.main(["adapt", *words]) == 2
    said = capsys.readouterr().err
    assert "clip 's0c0': label 'neutral' → 'pain'" in said and "clip 's0c1' of subject 's0' is gone" in said
    assert times_of(world.run("moving") / "subjects") == kept
    world.manifest(name="moving")
    assert cli.main(["adapt", *words]) == 0
    assert "new clips since this run was last started: 8" in capsys.readouterr().out
    assert len(world.rows("moving")) == 16 + 16


@pytest.mark.usefixtures("here")
def test_explanations_are_written_also_for_a_run_that_has_ended(world: World, tmp_path: Path) -> None:
    words = world.words("explained", *TUNED)
    assert cli.main(["adapt", *words]) == 0
    before = world.rows("explained")
    assert not (world.run("explained") / "explain").exists()
    aus = tmp_path / "aus"
    aus.mkdir()
    times = np.arange(34) / 25
    table = pd.DataFrame({"timestamp": times, "AU04_r": 1 + np.sin(times), "AU04_c": (times > 0.7).astype(int)})
    table.to_csv(aus / "s0c1.csv", index=False)
    (aus / "s0c2.csv").write_text("no table\n1\n")
    assert cli.main(["adapt", *words, "explain=true", f"aus={aus}"]) == 0
    folder = world.run("explained") / "explain"
    assert {path.name for path in folder.iterdir()} >= {"s0", "s1", "s2", "s3"} and list(folder.glob("*.html"))
    for name, length in (("prompts", 6), ("windows", 4), ("similarities", 24)):
        assert len(pd.read_csv(folder / "s0" / f"{name}.csv")) == length
    assert (folder / "s0" / "aus.csv").is_file() and not (folder / "s1" / "aus.csv").exists()
    facts = json.loads((folder / "s0" / "explanation.json").read_text())
    assert list(facts["au_files"]) == ["s0c1"] and list(facts["au_problems"]) == ["s0c2"]
    assert_same_results(world.rows("explained"), before)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("s*/*")}
    for asked in ([], [f"aus={aus}"]):
        assert cli.main(["adapt", *words, "explain=true", *asked]) == 0
        assert {path: path.stat().st_mtime_ns for path in folder.glob("s*/*")} == kept
    aus.rename(tmp_path / "elsewhere")
    table[:26].to_csv(tmp_path / "elsewhere" / "s1c0.csv", index=False)
    assert cli.main(["adapt", *words, "explain=true", f"aus={tmp_path / 'elsewhere'}"]) == 0
    assert (folder / "s1" / "aus.csv").is_file()


@pytest.mark.usefixtures("here")
def test_an_approximation_says_how_far_it_agrees_with_the_exact_method(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    words = world.words("cheap", *TUNED, "adapt.method.tune=feature", "work.exact_sample=2")
    assert cli.main(["adapt", *words]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "agrees with the exact method" in line)
    assert "feature tuning" in line and "of 8 decisions" in line
    assert len(list((world.run("cheap") / "agreement").iterdir())) == 2
    assert set(world.rows("cheap")["tune"]) == {"feature", "none"}  # the exact method's predictions become no rows
    assert cli.main(["adapt", *words]) == 0
    assert line in capsys.readouterr().out
    # Against the two computed here.
    exact = adapt(world.source(), [c for s in ("s0", "s1", "s2", "s3") for c in loaded(world, s)], PER_SUBJECT)
    found = of_every_clip(world.rows("cheap"), changed(PER_SUBJECT, tune="feature"))["probability"]
    apart = {
        s: np.mean([abs(float(p.probabilities[-1]) - found[p.clip_id]) for p in exact[s].predictions]) for s in exact
    }
    for file in (world.run("cheap") / "agreement").iterdir():
        (facts,) = json.loads(file.read_text()).values()
        assert facts["difference"] == pytest.approx(apart[file.stem], abs=1e-5) and facts["videos"] == 4


@pytest.mark.usefixtures("here")
def test_a_prior_is_given_or_estimated(world: World) -> None:
    assert cli.main(["adapt", *world.words("prior", "adapt=clip_au", "adapt.prior=0.2")]) == 0
    rows = world.rows("prior")
    own, plain = of_every_clip(rows, adapt_config(prior=0.2)), of_every_clip(rows, CLIP_AU)
    assert set(own["prior"]) == {0.2} and set(plain["prior"]) == {0.5} == set(rows["training_prior"])
    shifted = assume_share(torch.tensor(plain["probability"].to_numpy()), 0.2, made_with=0.5)
    np.testing.assert_allclose(own["probability"], shifted, atol=1e-6)
    assert (own["prediction"] == np.where(shifted > 0.5, "pain", "neutral")).all()
    assert set(own["prediction"]) == {"pain", "neutral"}
    assert cli.main(["adapt", *world.words("estimated", *TUNED, "adapt.prior=estimate")]) == 0
    rows = world.rows("estimated")
    method = changed(PER_SUBJECT, prior="estimate")
    expected = adapt(world.source(), loaded(world, "s2"), method)["s2"].after.prior
    found = of_every_clip(rows[rows["subject_id"] == "s2"], method)["prior"]
    assert found.tolist() == [pytest.approx(float(expected[-1]))] * 4 and found.iloc[0] > 0.5


@pytest.mark.usefixtures("here")
def test_degenerate_adaptation_is_marked_and_falls_back(tmp_path: Path) -> None:
    world = make_world(tmp_path, subjects=1, per_subject=8)
    cases = {
        "far": (
            ["adapt.method.tune=feature", "adapt.method.learning_rate=50"],
            "not adapted: the prompts drifted too far (drift ",
        ),
        "infinite": (
            ["adapt.method.learning_rate=1e300", "adapt.method.learning_rate_unit=absolute"],
            "not adapted: the ",
        ),
        "one-class": (["adapt.collapse_share=0"], "not adapted: all 8 clips fell into 'pain', 0 of them "),
    }
    for name, (more, status) in cases.items():
        assert cli.main(["adapt", *world.words(name, *TUNED, *more)]) == 0
        rows = world.rows(name)
        rows = rows[rows["cohort"] == EVERY].set_index("clip_id")
        plain = rows[rows["method"] == CLIP_AU.name]
        own = rows[rows["method"] != CLIP_AU.name]
        assert own["status"].str.startswith(status).all(), set(own["status"])
        np.testing.assert_allclose(own["probability"], plain.loc[own.index, "probability"], atol=1e-6)
        assert set(plain["status"]) == {"ok"}


@pytest.mark.usefixtures("here")
def test_rows_name_their_method_and_hold_all_its_settings(world: World) -> None:
    methods = [CACHE, PROTOTYPES, PER_VIDEO, CLIP_AU]
    rows, failed = run(world, "columns", *methods, cohorts=[])
    assert not failed and len(rows) == 4 * 16
    for method in methods:
        own = rows[rows["method"] == method.name]
        (settings,) = set(own["settings"])
        assert AdaptConfig.from_facts(json.loads(settings)) == method
        assert set(own["method_key"]) == {method.method.name} and set(own["adapts"]) == {method.method.adapts}
    facts = rows.groupby("method")[["objective", "steps", "learning_rate", "tune"]].first()
    assert facts.loc[CACHE.name].tolist() == ["tda", 0, 0.0, "none"]
    assert facts.loc[PROTOTYPES.name].tolist() == ["t3a", 0, 0.0, "none"]
    assert facts.loc[PER_VIDEO.name].tolist() == ["entropy", 3, 0.1, "context"]
    assert facts.loc[CLIP_AU.name].tolist() == ["none", 0, 0.0, "none"]


def test_a_method_that_moves_no_prompts_is_not_explained(world: World) -> None:
    with pytest.raises(ValueError, match="explain=true with method 'tda', which moves no AU prompts; set explain=fals"):
        world.job("moves-none", CACHE, explain=True)
    world.job("moves-none", CLIP_AU, CACHE, explain=True)


def test_methods_of_one_name_are_refused_and_repeated_ones_stand_once(world: World) -> None:
    assert [method.name for method in make_methods(CLIP_AU, ["clip_au", "default"])] == [
        "CLIP-AU, best window",
        "CLIP-AU, best window, median baseline",
    ]
    with pytest.raises(ValueError, match="two methods have the same name in the table: CLIP-AU, best window; omit"):
        world.job("names", CLIP_AU, changed(CLIP_AU, seed=1))


@pytest.mark.parametrize("name", ["actors", "clips_per_task", "exact_sample", "seconds_per_video"])
def test_work_settings_are_checked(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"{name}\n  Input should be greater than 0"):
        WorkConfig(**{name: 0})
