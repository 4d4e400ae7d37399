"""What is stored of people: per owner, per model, what `adapt=online` and `keep` go on from, erased for good."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clipautt.adaptation.driver import Unit as DriverUnit
from clipautt.adaptation.driver import adapt, adapt_units
from clipautt.adaptation.method import AdaptConfig, Session
from clipautt.adaptation.methods.t3a import T3A
from clipautt.adaptation.methods.zero_shot import ZeroShot
from clipautt.adaptation.personalization import Personalization, load_personalization, save_personalization
from clipautt.adaptation.source import Source
from clipautt.features.clip_features import ClipFeatures
from clipautt.predictor import Predictor
from clipautt.subjects import subject_file
from ray_jobs.serve.model import remembered, subjects
from ray_jobs.serve.model.personalized import Sent, personalize, to_encode_again
from ray_jobs.serve.model.subjects import SubjectStore
from ray_jobs.serve.model.tuned import (
    check_server_method,
    predict_online,
    predict_per_video,
    server_config,
    why_per_video_is_idle,
)
from ray_jobs.serve.refusals import Refusal, RefusedError
from ray_jobs.serve.web.keys import Who
from tests.support.configs import adapt_config, changed
from tests.support.fakes import fake_clip, fake_clips, fake_source

ANNA, BOB, ADMIN = Who("anna-key", "personalize"), Who("bob-key", "personalize"), Who("local", "admin")
TUNED = adapt_config(objective="infomax_kl", steps=2, learning_rate=0.1)
CLIPS = fake_clips(subjects=1, per_subject=5)


@pytest.fixture(scope="module")
def source() -> Source:
    return fake_source(subject_baseline="median")


@pytest.fixture
def store(tmp_path: Path) -> SubjectStore:
    return SubjectStore(tmp_path / "subjects", {"pain": tmp_path / "prompts", "stress": None})


def sent(clips: Sequence[ClipFeatures], *models: str, folder: Path | None = None) -> list[Sent]:
    """The clips as uploads; with a folder, each has a file in it."""
    paths = [(folder or Path("nowhere")) / f"upload{i}" for i in range(len(clips))]
    for path in paths if folder else ():
        path.write_text("a video")
    return [Sent(path, dict.fromkeys(models or ["pain"], clip)) for path, clip in zip(paths, clips, strict=True)]


def put(
    store: SubjectStore, source: Source, clips: Sequence[ClipFeatures], who: Who = ANNA, name: str = "p", **rest: Any
) -> dict[str, Any]:
    """Personalize `pain` to a subject."""
    options: dict[str, Any] = {"config": TUNED, "keep": False} | rest
    return personalize(store, who, name, sent(clips), {"pain": source}, **options)


def refusal(code: str) -> Any:
    """The context in which exactly this refusal is raised."""

    class _Check:
        def __enter__(self) -> _Check:
            return self

        def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
            assert isinstance(error, RefusedError), error
            assert error.refusal.code == code, error.refusal
            self.detail = error.refusal.detail
            return True

        detail = ""

    return _Check()


def files_below(folder: Path) -> set[str]:
    """Paths of all files and folders, without locks."""
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {path for path in paths if not path.startswith(".locks")}


def adapted_by_job(store: SubjectStore, source: Source, subject: str) -> Path:
    """A file as `clipautt adapt` writes it."""
    config = server_config(source, TUNED, "per_subject")
    (result,) = adapt(source, CLIPS[:2], config).values()
    made = replace(Personalization.of(result, config), subject_id=subject)
    folder = store.prompts["pain"]
    assert folder is not None
    save_personalization(made, folder / subject_file(subject), checkpoint=source.checkpoint.fingerprint)
    return folder / subject_file(subject)


def test_what_is_stored_is_what_adapt_makes_and_only_its_owner_sees_it(store: SubjectStore, source: Source) -> None:
    told = put(store, source, CLIPS[:2])
    config = server_config(source, TUNED, "per_subject")
    (result,) = adapt(source, CLIPS[:2], config).values()
    made = store.personalization(ANNA, "p", "pain", source)
    assert torch.equal(made.centre, result.centre) and made.config == config and made.clips == ("clip 1", "clip 2")
    assert torch.equal(made.saved.tensors["context"], config.method.save(result.state).tensors["context"])
    since = told["models"]["pain"].pop("since")
    assert since.endswith("+00:00") and store.describe(ANNA, "p")["models"]["pain"]["since"] == since
    warnings = told["models"]["pain"].pop("warnings")
    assert "rests on 40 frames (3.2 s); with fewer than 100" in warnings[0]
    expected = {"method": "clip_autt", "clips": 2, "frames": 40, "seconds": 3.2}
    assert told == {"subject_id": "p", "models": {"pain": expected}, "kept_clips": 0, "made_by": "server"}
    assert (store.ids(ANNA), store.ids(BOB), store.ids(ADMIN)) == (["p"], [], [])
    for ask in (lambda: store.personalization(BOB, "p", "pain", source), lambda: store.describe(ADMIN, "p")):
        with refusal("unknown_subject"):
            ask()
    put(store, source, CLIPS[2:], who=BOB)
    assert not torch.equal(store.personalization(BOB, "p", "pain", source).centre, made.centre)
    assert store.erase(BOB, "p") == [
        "prompts and resting face of model pain", "features of 3 clips of model pain"
    ]  # fmt: skip
    assert store.personalization(ANNA, "p", "pain", source) is made, "of another owner, and still in memory"
    with refusal("unknown_subject") as caught:
        store.personalization(ANNA, "p", "stress", source)
    assert caught.detail == "nothing is stored for subject 'p' and 'stress'; there is something for pain"
    with refusal("unknown_model") as caught:
        store.personalization(ANNA, "p", "joy", source)
    assert caught.detail == "model='joy'; served: pain, stress"


def test_subjects_of_the_adapt_job_are_for_admins_unless_they_stored_their_own(
    store: SubjectStore, source: Source
) -> None:
    path = adapted_by_job(store, source, "Zo\u00eb")
    assert (store.ids(ADMIN), store.ids(ANNA)) == (["Zo\u00eb"], [])
    with refusal("unknown_subject"):
        store.personalization(ANNA, "Zo\u00eb", "pain", source)
    assert store.personalization(ADMIN, "Zoe\u0308", "pain", source).clips == ("s0c0", "s0c1")
    assert store.describe(ADMIN, "Zo\u00eb")["made_by"] == "adapt"
    with refusal("cannot_adapt") as caught:
        predict_online(store, ADMIN, "Zo\u00eb", "pain", Predictor(source), CLIPS[0], config=TUNED)
    assert "by `clipautt adapt`, and its clips are not here; personalize subject 'Zo\u00eb' again (PUT" in caught.detail
    put(store, source, CLIPS[:3], who=ADMIN, name="Zo\u00eb")
    assert store.describe(ADMIN, "Zo\u00eb")["made_by"] == "server" and path.is_file()
    assert store.erase(ANNA, "Zo\u00eb") == [] and path.is_file()
    assert store.erase(ADMIN, "Zo\u00eb") == [
        "prompts and resting face of model pain",
        "features of 3 clips of model pain",
        "prompts of model pain that `clipautt adapt` wrote",
    ]
    assert not path.exists() and store.ids(ADMIN) == []


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "..", ".", "/abs", "a/b", "a\\b", "nul\0", "~", "*", "%2E%2E", "-rf", "\u202eabc", " x"],
)
def test_ids_that_look_like_paths_are_names(tmp_path: Path, store: SubjectStore, source: Source, name: str) -> None:
    put(store, source, CLIPS[:1], name=name)
    assert store.ids(ANNA) == [name] and store.describe(ANNA, name)["subject_id"] == name
    own = {path for path in files_below(tmp_path) if path.endswith(".safetensors")}
    assert own == {f"subjects/anna-key/pain/{subject_file(name)}"}
    assert len(store.erase(ANNA, name)) == 2 and store.ids(ANNA) == []


def test_ids_that_are_none_are_refused(store: SubjectStore, source: Source) -> None:
    for name, said in (
        ("", "subject_id=''; allowed: a name that is not empty, in UTF-8"),
        (" \n", "subject_id=' \\n'; allowed: a name"),
        ("\ud800", "subject_id='\\ud800'; allowed"),
        ("x" * 229, "subject_id='xxxxxxxxxxxxxxxxxxxx'… is too long for the name of a file; give a shorter one"),
        ("é" * 39, "is too long"),
    ):
        calls = (store.describe, store.erase, store.ticket)
        for call in calls:
            with refusal("wrong_field") as caught:
                call(ANNA, name)
            assert said in caught.detail
    put(store, source, CLIPS[:1], name="x" * 228)
    predict_online(store, ANNA, "x" * 228, "pain", Predictor(source), CLIPS[1], config=TUNED)
    assert store.erase(ANNA, "x" * 228)


def test_the_cache_is_bounded_and_sees_files_that_change(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SubjectStore(tmp_path / "subjects", {"pain": None}, cached=2)
    other = SubjectStore(tmp_path / "subjects", {"pain": None})
    for number in range(3):
        put(store, source, CLIPS[: number + 1], name=f"p{number}")
    held = [store.personalization(ANNA, f"p{number}", "pain", source) for number in range(3)]
    assert store.personalization(ANNA, "p2", "pain", source) is held[2]
    assert store.personalization(ANNA, "p0", "pain", source) is not held[0], "the one longest unused made room"
    put(other, source, CLIPS[3:], name="p2")
    assert store.personalization(ANNA, "p2", "pain", source).clips == ("clip 1", "clip 2")
    other.erase(ANNA, "p2")
    assert store.drop_stale() == 1 and store.drop_stale() == 0
    with refusal("unknown_subject"):
        store.personalization(ANNA, "p2", "pain", source)
    other.forget(ANNA, "p0")
    store.forget(ANNA, "p0")
    assert not store._cache


def test_files_that_cannot_be_used_say_so_without_a_path(tmp_path: Path, store: SubjectStore, source: Source) -> None:
    put(store, source, CLIPS[:2])
    other = fake_source(subject_baseline="median", seed=1)
    with refusal("other_checkpoint") as caught:
        store.personalization(ANNA, "p", "pain", other)
    mine, theirs = source.checkpoint.fingerprint, other.checkpoint.fingerprint
    assert caught.detail == f"what is stored for subject 'p' belongs to checkpoint {mine}, and 'pain' is {theirs} now"
    (first, *_) = store.describe(ANNA, "p", {"pain": theirs})["models"]["pain"]["warnings"]
    assert first == "It belongs to another checkpoint than the one that is served, and cannot be used with it."
    with refusal("other_checkpoint"):
        predict_online(store, ANNA, "p", "pain", Predictor(other), CLIPS[0], config=TUNED)
    path = tmp_path / "subjects" / "anna-key" / "pain" / "p.safetensors"
    whole = path.read_bytes()
    for number, content in enumerate((b"", b"junk", whole[: len(whole) // 2])):
        path.write_bytes(content)
        for ask in (store.describe, lambda who, name: store.personalization(who, name, "pain", source)):
            with refusal("other_checkpoint") as caught:
                ask(ANNA, "p")
            assert caught.detail == "what is stored for subject 'p' and 'pain' is damaged, or of another version"
        assert store.ids(ANNA) == ["p"], number
    save_file({"centre": torch.zeros(2)}, path)
    with refusal("other_checkpoint"):
        store.describe(ANNA, "p")
    assert store.erase(ANNA, "p") == ["prompts and resting face of model pain"]


def test_a_video_alone_is_tuned_as_the_driver_tunes_it(source: Source) -> None:
    config = changed(TUNED, windows_per_clip=3)
    found = predict_per_video(Predictor(source), CLIPS[1], config=config)
    (result,) = adapt(source, [CLIPS[1]], server_config(source, config, "per_video")).values()
    assert list(found.prediction.probabilities.values()) == result.predictions[0].probabilities.tolist()
    assert found.before.probabilities == Predictor(source).predict_features(CLIPS[1]).probabilities
    assert found.before.probabilities != found.prediction.probabilities
    assert found.prediction.personalized_for is None
    with refusal("no_label") as caught:
        predict_per_video(Predictor(source), fake_clip(num_frames=3), config=TUNED)
    assert caught.detail.startswith("no label: too short: 3 frames, fewer than a window of 6 has")
    broken = replace(CLIPS[0], features=CLIPS[0].features * float("nan"))
    with refusal("not_finite"):
        predict_per_video(Predictor(source), broken, config=TUNED)


def test_tuning_that_goes_wrong_is_told(source: Source) -> None:
    wild = changed(TUNED, windows_per_clip=3, learning_rate=1e4, max_drift=1.0)
    found = predict_per_video(Predictor(source), CLIPS[1], config=wild)
    assert found.prediction.probabilities == found.before.probabilities
    said = found.prediction.cautions["not_adapted"]
    assert said.startswith("Adaptation went wrong, and the prediction is made without it: ")
    assert "not_adapted" not in found.before.cautions


@pytest.mark.parametrize("config", [TUNED, changed(TUNED, tune="feature"), AdaptConfig(T3A())])
def test_online_is_the_driver_s_run_over_the_same_videos(
    store: SubjectStore, source: Source, config: AdaptConfig
) -> None:
    own = server_config(source, config, "online")
    (result,) = adapt_units(Session.open(source, own), [DriverUnit("p", tuple(CLIPS), in_order=True)])
    predictor = Predictor(source)
    found = [predict_online(store, ANNA, "p", "pain", predictor, clip, config=config) for clip in CLIPS]
    for one, expected in zip(found, result.predictions, strict=True):
        assert list(one.prediction.probabilities.values()) == pytest.approx(expected.probabilities.tolist(), abs=1e-6)
        assert one.prediction.window_start_seconds == expected.window_start_seconds
        assert one.prediction.personalized_for == "p"
    stored = store.personalization(ANNA, "p", "pain", source)
    assert torch.equal(stored.centre, result.centre) and stored.config == own
    told = store.describe(ANNA, "p")["models"]["pain"]
    assert (told["clips"], told["frames"]) == (5, 100)
    assert "rests on 60 frames" in found[2].prediction.cautions["few_personal_frames"]
    again = predict_online(store, ANNA, "p", "pain", predictor, CLIPS[1], config=config)
    noise = replace(CLIPS[3], features=CLIPS[3].features * (1 + 1e-6))
    assert again.prediction.probabilities == found[1].prediction.probabilities
    assert again.prediction.entropy.equals(found[1].prediction.entropy) and repr(again) == repr(found[1])
    other_rounding = predict_online(store, ANNA, "p", "pain", predictor, noise, config=config)
    assert other_rounding.prediction.probabilities == found[3].prediction.probabilities
    assert store.describe(ANNA, "p")["models"]["pain"] == told, "frames that came before count once"
    assert predictor.predict_features(CLIPS[0], personalization=stored).label is not None


@pytest.mark.parametrize("config", [TUNED, AdaptConfig(T3A())])
def test_online_goes_on_from_what_was_personalized(store: SubjectStore, source: Source, config: AdaptConfig) -> None:
    dark = replace(CLIPS[2], brightness=np.full(20, 0.05, np.float32))
    since = put(store, source, [*CLIPS[:2], dark], config=config)["models"]["pain"]["since"]
    stored = store.personalization(ANNA, "p", "pain", source)
    found = predict_online(store, ANNA, "p", "pain", Predictor(source), CLIPS[3], config=config)
    told = store.describe(ANNA, "p")["models"]["pain"]
    assert (told["clips"], told["frames"], told["since"]) == (4, 80, since)
    assert told["warnings"][-1].startswith("clip 3: The picture is dark"), "as before"
    fresh = SubjectStore(store.folder, store.prompts)
    later = fresh.personalization(ANNA, "p", "pain", source)
    assert later.clips == ("clip 1", "clip 2", "clip 3", "clip 4")
    shown = torch.cat([clip.features for clip in CLIPS[:4]])
    assert torch.equal(later.centre, shown.median(0).values) and not torch.equal(later.centre, stored.centre)
    assert found.prediction.label is not None
    known = predict_online(store, ANNA, "p", "pain", Predictor(source), CLIPS[0], config=config)
    alike = Predictor(source).predict_features(CLIPS[0], personalization=later)
    assert known.prediction.probabilities == alike.probabilities, "it was personalized with, and is not visited again"
    assert store.describe(ANNA, "p")["models"]["pain"]["clips"] == 4
    before = store.personalization(ANNA, "p", "pain", source)
    other = changed(TUNED, steps=3)
    with refusal("cannot_adapt") as caught:
        predict_online(store, ANNA, "p", "pain", Predictor(source), CLIPS[4], config=other)
    assert "and this server uses 'CLIP-AUTT infomax+KL, online, median baseline, 3 steps of 0.1'" in caught.detail
    short = replace(CLIPS[4], face_found=(torch.arange(20) < 2).numpy(), min_share=0.8)
    with refusal("no_label"):
        predict_online(store, ANNA, "p", "pain", Predictor(source), short, config=config)
    assert store.personalization(ANNA, "p", "pain", source) is before, "what cannot be predicted changes nothing"


def test_only_the_recent_clips_are_remembered(
    store: SubjectStore, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "MOST_CLIPS", 3)
    uploads = sent(CLIPS[:1], folder=tmp_path)
    personalize(store, ANNA, "p", uploads, {"pain": source}, config=TUNED, keep=True)
    for clip in CLIPS[1:]:
        predict_online(store, ANNA, "p", "pain", Predictor(source), clip, config=TUNED)
    made = store.personalization(ANNA, "p", "pain", source)
    assert made.clips == ("clip 1", "clip 4", "clip 5"), "the oldest that is not kept makes room"
    told = store.describe(ANNA, "p")
    assert told["models"]["pain"]["frames"] == 60 and told["kept_clips"] == 1
    monkeypatch.setattr(remembered, "MOST_FRAMES", 45)
    predict_online(store, ANNA, "p", "pain", Predictor(source), fake_clip("c9"), config=TUNED)
    assert store.personalization(ANNA, "p", "pain", source).clips == ("clip 1", "clip 6")


def test_kept_videos_add_up_and_others_are_replaced(tmp_path: Path, store: SubjectStore, source: Source) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    both = {"pain": source, "stress": fake_source(subject_baseline="median", seed=1)}

    def keep(clips: Sequence[ClipFeatures], *models: str, keep: bool = True) -> dict[str, Any]:
        asked = {model: both[model] for model in models}
        uploads = sent(clips, *models, folder=spool)
        return personalize(store, ANNA, "p", uploads, asked, config=TUNED, keep=keep)

    def made(model: str = "pain") -> Personalization:
        return store.personalization(ANNA, "p", model, both[model])

    assert keep(CLIPS[:2], "pain", "stress")["kept_clips"] == 2
    videos = {path.name for path in (tmp_path / "subjects/anna-key/.clips/p").iterdir()}
    assert all(len(name) == 32 for name in videos) and not any("upload" in name for name in videos)
    predict_online(store, ANNA, "p", "pain", Predictor(source), CLIPS[4], config=TUNED)
    told = keep([CLIPS[2], CLIPS[0]], "pain")
    assert (told["kept_clips"], told["models"]["pain"]["clips"]) == (3, 3), "neither the copy nor the visited one"
    assert "clip 4 shows the same frames as 'clip 1', and they count once." in told["models"]["pain"]["warnings"]
    (result,) = adapt(source, CLIPS[:3], server_config(source, TUNED, "per_subject")).values()
    assert torch.equal(made().centre, result.centre)
    (again,) = to_encode_again(store, ANNA, "p", both)
    assert to_encode_again(store, ANNA, "p", {"pain": source}) == []
    unreadable = [Sent(again, {}, Refusal("timeout", "no answer in time"))]
    told = personalize(store, ANNA, "p", unreadable, {"stress": both["stress"]}, config=TUNED, keep=True)
    assert told["kept_clips"] == 3 and to_encode_again(store, ANNA, "p", both) == [again], "it is tried again"
    more = [Sent(again, {"stress": CLIPS[2]}), *sent(CLIPS[3:4], "stress", folder=spool)]
    told = personalize(store, ANNA, "p", more, {"stress": both["stress"]}, config=TUNED, keep=True)
    assert told["kept_clips"] == 4 and told["models"]["stress"]["clips"] == 4
    assert keep(CLIPS[4:], "pain", keep=False)["kept_clips"] == 4, "those of the other model stay"
    assert made().clips == ("clip 1",) and len(made("stress").clips) == 4
    assert store.erase(ANNA, "p") == [
        "prompts and resting face of model pain",
        "features of 1 clip of model pain",
        "prompts and resting face of model stress",
        "features of 4 clips of model stress",
        "4 kept clips",
    ]
    assert files_below(store.folder) == {"anna-key", "anna-key/.clips", "anna-key/pain", "anna-key/stress", ".writing"}


def test_videos_that_cannot_be_used_give_their_reasons_and_change_nothing(
    tmp_path: Path, store: SubjectStore, source: Source
) -> None:
    put(store, source, CLIPS[:2])
    before = store.personalization(ANNA, "p", "pain", source)
    faceless = Sent(tmp_path / "faceless", {}, Refusal("no_face", "no face was found in 50 frames"))
    short = Sent(tmp_path / "gone", {"pain": fake_clip(num_frames=3)})
    short.path.write_text("a video")
    for uploads, code, said in (
        ([faceless], "no_face", "clip 1: no face was found in 50 frames"),
        ([faceless, short], "no_label", "clip 1: no face was found in 50 frames; clip 2: too short: 3 frames, fewer"),
        ([], "no_label", "none was sent"),
    ):
        with refusal(code) as caught:
            personalize(store, ANNA, "p", uploads, {"pain": source}, config=TUNED, keep=bool(uploads))
        assert caught.detail.startswith(f"no video can be used to personalize: {said}")
        assert str(tmp_path) not in caught.detail
    broken = replace(CLIPS[0], features=CLIPS[0].features * float("inf"))
    with refusal("not_finite"):
        put(store, source, [broken])
    with refusal("cannot_adapt") as caught:
        put(store, fake_source(), CLIPS[:1], config=adapt_config())
    assert caught.detail.startswith("'CLIP-AU, best window' adapts nothing to a person; take adapt=default")
    with refusal("over_limit"):
        put(store, source, CLIPS * 13)
    with refusal("unknown_model"):
        personalize(store, ANNA, "p", sent(CLIPS), {"joy": source}, config=TUNED, keep=False)
    assert store.personalization(ANNA, "p", "pain", source) is before
    assert store.describe(ANNA, "p")["kept_clips"] == 0
    partly = personalize(store, ANNA, "p", [faceless, *sent(CLIPS[:1])], {"pain": source}, config=TUNED, keep=False)
    assert partly["models"]["pain"]["clips"] == 1
    assert store.personalization(ANNA, "p", "pain", source).omitted == {"clip 1": "no face was found in 50 frames"}


def test_what_was_begun_before_an_erasure_writes_nothing_after_it(store: SubjectStore, source: Source) -> None:
    put(store, source, CLIPS[:2])
    ticket = store.ticket(ANNA, "p")
    store.erase(ANNA, "p")
    for late in (
        lambda: put(store, source, CLIPS[:2], ticket=ticket),
        lambda: predict_online(store, ANNA, "p", "pain", Predictor(source), CLIPS[0], config=TUNED, ticket=ticket),
    ):
        with refusal("unknown_subject") as caught:
            late()
        assert caught.detail == "subject 'p' was erased meanwhile; nothing is stored"
    assert store.ids(ANNA) == [] and store.erase(ANNA, "p") == []
    put(store, source, CLIPS[:2], ticket=store.ticket(ANNA, "p"))
    assert store.ids(ANNA) == ["p"]


def test_a_killed_writer_leaves_nothing_that_an_erasure_does_not_find(
    tmp_path: Path, store: SubjectStore, source: Source
) -> None:
    """The process dies at the last moment before the file gets its name."""
    name = "a-name-that-is-longer-than-forty-characters-and-cut-in-temporary-names"
    child = os.fork()
    if child == 0:
        try:
            setattr(subjects, "move", lambda *_: os._exit(9))  # noqa: B010
            put(store, source, CLIPS[:2], name=name)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = [path for path in files_below(store.folder) if name in path]
    assert len(left) == 1 and left[0].startswith(".writing/") and store.ids(ANNA) == []
    put(store, source, CLIPS[:1], name="another")
    assert store.erase(ANNA, name) == []
    assert not [path for path in files_below(store.folder) if name in path]


def test_a_subject_that_others_change_for_long_is_busy(
    store: SubjectStore, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "_WAIT_SECONDS", 0.02)
    with store.changing(ANNA, "p"):
        for ask in (lambda: put(store, source, CLIPS[:1]), lambda: store.erase(ANNA, "p")):
            with refusal("subject_busy") as caught:
                ask()
            assert caught.detail == "subject 'p' is being changed by other requests"
    assert store.erase(ANNA, "p") == []


def test_requests_of_one_subject_at_once_lose_none(store: SubjectStore, source: Source) -> None:
    other = SubjectStore(store.folder, store.prompts)
    stores = [store, other, store, other, store]

    def ask(one: SubjectStore, clip: ClipFeatures) -> None:
        predict_online(one, ANNA, "p", "pain", Predictor(source), clip, config=TUNED)

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(stores, CLIPS, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.describe(ANNA, "p")["models"]["pain"]["clips"] == 5
    path = store.folder / "anna-key" / "pain" / "p.safetensors"
    assert load_personalization(path, source).basis.num_frames == 100  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            AdaptConfig(ZeroShot()),
            "per_video.method=zero_shot with these settings adapts nothing, so that adapt=per_video",
        ),
        (adapt_config(), "per_video.method=clip_autt with these settings adapts nothing"),
        (
            changed(TUNED, prior="estimate"),
            "adapt.prior=estimate needs all clips of a subject together, but the server",
        ),
    ],
)
def test_methods_that_the_server_cannot_use_are_refused_at_its_start(
    source: Source, config: AdaptConfig, said: str
) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        check_server_method(source, config)


def test_whether_adapting_to_a_single_video_changes_anything_is_tried(source: Source) -> None:
    said = why_per_video_is_idle(source, TUNED)
    assert said is not None
    assert said.startswith("adapt=per_video will change no answer: 'CLIP-AUTT infomax+KL, per video, median baseline")
    for config in (changed(TUNED, windows_per_clip=16), changed(TUNED, objective="entropy"), AdaptConfig(T3A())):
        assert why_per_video_is_idle(source, config) is None
    assert why_per_video_is_idle(source, changed(TUNED, objective="entropy", learning_rate=1e4, max_drift=1.0)) is None


def test_a_method_that_needs_pixels_is_refused_and_others_are_not(source: Source) -> None:
    class Pixels(T3A):
        name = "pixels"
        needs = frozenset({"pixels"})

    with pytest.raises(ValueError, match="method 'pixels' needs pixels, but"):
        check_server_method(source, AdaptConfig(Pixels()))
    check_server_method(source, changed(TUNED, protocol="per_video"))
