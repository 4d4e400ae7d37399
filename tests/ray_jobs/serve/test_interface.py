"""`POST /api/predict`: labels and models in any spelling, messages, and videos that go when their time is over."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response

from ray_jobs.serve.refusals import Refusal, RefusedError
from ray_jobs.serve.web.annotated_videos import AnnotatedVideos
from ray_jobs.serve.web.asked import Ask
from ray_jobs.serve.web.interface import answer, choose_model, fitting_model, match_labels, read_labels
from ray_jobs.serve.web.keys import Who
from ray_jobs.serve.web.uploads import Form, Upload
from tests.support.browser import find_chromium, open_page
from tests.support.clock import Clock
from tests.support.recordings import face_frames, recorded_webm
from tests.support.serving import save_model, served, small_source
from tests.support.web import Page, serving

WHO = Who("k1", "predict")
UNSEEN = "The checkpoint was trained on rendered faces only, and this video is not marked as rendered."
DARK = "The picture is dark: its brightness is 0.08 on a scale from 0 to 1."
RISE = {"code": "AU4", "name": "Brow lowerer", "phrase": "eyebrows lowered", "rise": 0.04}
FOUND = {
    "model": "pain",
    "label": "pain",
    "probabilities": {"neutral": 0.25, "pain": 0.75},
    "window_start_seconds": 1.24,
    "window_end_seconds": 1.72,
    "top_action_units": [RISE],
    "warning_codes": ["too_dark", "unseen_footage"],
    "warnings": [DARK, UNSEEN],
}


class Stand:
    """Deployments that answer `FOUND`, and draw ten bytes."""

    def __init__(self, predicted: Any = None, drawn: Refusal | None = None) -> None:
        self.predicted = FOUND if predicted is None else predicted
        self.drawn = drawn
        self.asked: list[Ask] = []

    async def models(self) -> Any:
        names = {"pain": ["neutral", "pain"], "Stress_v2": ["neutral", "stress"]}
        return [{"name": name, "classes": classes} for name, classes in names.items()]

    async def predict(self, upload: Upload, ask: Ask) -> Any:
        self.asked.append(ask)
        return self.predicted

    async def annotate(self, upload: Upload, answer: dict[str, Any], target: Path) -> Refusal | None:
        target.write_bytes(b"0123456789" if self.drawn is None else b"012")
        return self.drawn


def form(labels: str = '["Pain", "No Pain"]', model: str = "PAIN") -> Form:
    return Form({"labels": [labels], "model": [model]}, [Upload(Path("/spool/x"), 10)], 0.1)


def ask(videos: AnnotatedVideos, stand: Stand, given: Form | None = None) -> dict[str, Any]:
    return asyncio.run(answer(given or form(), stand, videos, "https://face.example.org/", WHO))  # type: ignore[arg-type]


def test_the_answer_is_in_the_words_of_the_page(tmp_path: Path) -> None:
    stand, videos = Stand(), AnnotatedVideos(tmp_path / "videos")
    found = ask(videos, stand)
    address = found.pop("annotatedVideoUrl")
    assert found == {
        "label": "Pain",
        "scores": {"Pain": 0.75, "No Pain": 0.25},
        "message": (
            f"{UNSEEN} The face is most expressive from 1.2 to 1.7 s; what rose most: Brow lowerer (AU4). {DARK}"
        ),
    }
    assert re.fullmatch(r"https://face\.example\.org/api/videos/[\w-]{43}\.mp4", address)
    assert stand.asked == [Ask(WHO, ("pain",))]
    found = ask(
        videos, Stand(FOUND | {"label": "neutral", "top_action_units": [], "warnings": [], "warning_codes": []})
    )
    assert found["label"] == "No Pain" and list(found["scores"]) == ["Pain", "No Pain"], "in the order of the labels"
    assert found["message"] == (
        "The face is most expressive from 1.2 to 1.7 s; no action unit rose over its usual level."
    )


def test_the_older_page_is_answered_which_names_no_model_and_three_labels(tmp_path: Path) -> None:
    given = Form({"labels": ['["Pain", "Stress", "Neutral"]']}, [Upload(Path("/spool/x"), 10)], 0.1)
    stand = Stand()
    found = ask(AnnotatedVideos(tmp_path), stand, given)
    assert stand.asked == [Ask(WHO, ("pain",))] and found["label"] == "Pain"
    assert list(found["scores"].items()) == [("Pain", 0.75), ("Stress", 0.0), ("Neutral", 0.25)]
    assert found["message"].startswith(
        f"{UNSEEN} The model pain does not look for Stress; a score of 0 there says nothing. The face is most expr"
    )


def test_what_cannot_be_drawn_is_still_answered_and_what_is_refused_leaves_no_file(tmp_path: Path) -> None:
    videos = AnnotatedVideos(tmp_path)
    found = ask(videos, Stand(drawn=Refusal("timeout", "no answer in time")))
    assert found["label"] == "Pain" and found["annotatedVideoUrl"] == ""
    assert found["message"].endswith(" The annotated video could not be made: no answer in time.")
    small = AnnotatedVideos(tmp_path / "small", max_bytes=9)
    found = ask(small, Stand())
    assert (
        found["annotatedVideoUrl"] == ""
        and "could not be made: it is larger than the server keeps." in found["message"]
    )
    with pytest.raises(RefusedError, match="no face was found") as refused:
        ask(videos, Stand(Refusal("no_face", "no face was found")))
    assert refused.value.refusal.code == "no_face" and not list(tmp_path.rglob("*.mp4"))


@pytest.mark.parametrize(
    ("labels", "classes", "named"),
    [
        (["Neutral", "Pain"], ["neutral", "pain"], ["Neutral", "Pain"]),
        (["PAIN", "no pain"], ["neutral", "pain"], ["no pain", "PAIN"]),
        (["non-pain", "Pain"], ["neutral", "pain"], ["non-pain", "Pain"]),
        (["Not Stress", "stress"], ["neutral", "stress"], ["Not Stress", "stress"]),
        (["No_Pain", " pain "], ["baseline", "pain"], ["No_Pain", " pain "]),
        (["Baseline", "Ambivalence"], ["neutral", "ambivalence"], ["Baseline", "Ambivalence"]),
        (["TRES  MALADE\u0301", "sain"], ["sain", "tres-malad\u00e9"], ["sain", "TRES  MALADE\u0301"]),
        (["joy", "fear", "neutral"], ["calm", "fear", "joy"], ["neutral", "fear", "joy"]),
        (["calm", "neutral"], ["calm", "neutral"], ["calm", "neutral"]),
        (["a b", "ab"], ["ab", "a b"], ["ab", "a b"]),
    ],
)
def test_labels_name_classes_in_any_spelling(labels: list[str], classes: list[str], named: list[str]) -> None:
    found, foreign = match_labels(labels, classes)
    assert not foreign and [found[one] for one in classes] == named and list(found.values()) == labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["Joy", "Pain"], "'Joy' names no class of the model; its classes: neutral, pain"),
        (["Pain", "Anger", "Neutral"], "'Anger' names no class of the model; its classes: neutral, pain"),
        (["Stress", "Neutral"], "no label names 'pain'; name every class of the model: neutral, pain"),
        (
            ["No Pain", "Neutral", "Pain"],
            "'No Pain' and 'Neutral' both name the class 'neutral'; classes of the model: neutral, pain",
        ),
        (["Pain", "Pain"], "'Pain' and 'Pain' both name the class 'pain'; classes of the model: neutral, pain"),
        (
            ["Pain", "Neutral", "stress", "Stress"],
            "'stress' and 'Stress' both name the class 'stress'; classes of the model: neutral, pain",
        ),
        (["Neutral"], "no label names 'pain'; name every class of the model: neutral, pain"),
        ([""], "'' names no class of the model; its classes: neutral, pain"),
        (["pain\ud800", "neutral"], "'pain\\ud800' names no class of the model; its classes: neutral, pain"),
        (["x" * 3000], f"'{'x' * 60}…' names no class of the model; its classes: neutral, pain"),
    ],
)
def test_labels_that_do_not_fit_are_named_with_the_classes(labels: Sequence[str], message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        match_labels(labels, ["neutral", "pain"], ["stress"])
    assert refused.value.refusal == Refusal("unknown_labels", message)
    refused.value.refusal.detail.encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "labels is missing or empty; a JSON list of class names is needed"),
        ("Pain,Neutral", "labels is no JSON; a JSON list of class names is needed"),
        ("[" * 4000, "labels is no JSON; "),
        (f"[{'9' * 4090}]", "labels is no "),
        ("[" + " " * 4096, "labels has 4097 characters; allowed: 4096"),
        ("[]", "labels is no list of names; "),
        ('["Pain", 1]', "labels is no list of names; "),
        ('{"Pain": 1}', "labels is no list of names; "),
        ('"Pain"', "labels is no list of names; "),
        ("null", "labels is no list of names; "),
    ],
)
def test_what_is_no_list_of_labels_is_refused(text: str, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read_labels(text)
    assert refused.value.refusal.code == "wrong_field" and refused.value.refusal.detail.startswith(message)


def test_models_are_known_by_name() -> None:
    served = ["pain", "Stress_v2"]
    assert choose_model(" Pain", served) == "pain" and choose_model("stress V2", served) == "Stress_v2"
    assert choose_model("PAIN", ["pain", "PAIN"]) == "PAIN", "its own spelling"
    for name, code, message in (
        ("ambivalence", "unknown_model", "no model 'ambivalence'; served are: pain, Stress_v2"),
        ("../pain", "unknown_model", "no model '../pain'; served are: pain, Stress_v2"),
    ):
        with pytest.raises(RefusedError) as refused:
            choose_model(name, served)
        assert refused.value.refusal == Refusal(code, message)


def test_without_a_name_the_labels_choose_the_model() -> None:
    pain, stress = ["neutral", "pain"], ["neutral", "stress"]
    both, names = {"ache": pain, "worry": stress}, ["Pain", "Stress", "Neutral"]
    assert (
        fitting_model(["Stress", "No Stress"], both) == "worry" and fitting_model(["Neutral", "PAIN"], both) == "ache"
    )
    assert fitting_model(names, both) == "ache", "both fit, so the first"
    assert fitting_model(names, both | {"three": ["neutral", "pain", "stress"]}) == "three", "it knows them all"
    assert fitting_model(["Pain", "Neutral", "joy"], both | {"mood": ["neutral", "joy"]}) == "ache"
    assert fitting_model(names, {"worry": stress}) == "worry", "pain is a task that is known, if not served"
    for labels, classes, message in (
        (
            ["Ambivalence", "Neutral"],
            both,
            "fit no served model; models and their classes: ache: neutral, pain; worry: ",
        ),
        (["Pain", "Stress"], both, "the labels fit no served model"),
        (
            ["Pain", "Neutral"],
            {"worry": stress},
            "no label names 'stress'; name every class of the model: neutral, str",
        ),
        (
            ["Anger", "Stress", "Neutral"],
            {"worry": stress},
            "'Anger' names no class of the model; its classes: neutral",
        ),
    ):
        with pytest.raises(RefusedError, match=re.escape(message)) as refused:
            fitting_model(labels, classes)
        assert refused.value.refusal.code == "unknown_labels"


def kept(videos: AnnotatedVideos, content: bytes = b"0123456789") -> str:
    path = videos.begin()
    path.write_bytes(content)
    token = videos.keep(path)
    videos.discard(path)
    return token


def fetch(videos: AnnotatedVideos, name: str, **headers: str) -> httpx.Response:
    app = FastAPI()

    @app.get("/api/videos/{name}")
    async def video(name: str) -> FileResponse:
        return videos.response(name)

    @app.exception_handler(RefusedError)
    async def refused(_: Any, error: RefusedError) -> Response:
        return JSONResponse(error.refusal.body, error.refusal.status)

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.get(f"/api/videos/{name}", headers=headers)

    return asyncio.run(get())


def test_a_video_is_sent_in_ranges_to_whoever_knows_its_address(tmp_path: Path) -> None:
    videos = AnnotatedVideos(tmp_path / "new" / "videos")
    token, other = kept(videos), kept(videos)
    assert token != other and len(token) == 43
    (first, _) = sorted(path for path in (tmp_path / "new" / "videos").iterdir())
    assert stat.S_IMODE(first.stat().st_mode) == 0o600 and stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    assert token not in str(list(first.parent.iterdir())), "who lists the folder learns no address"
    whole, part = fetch(videos, f"{token}.mp4"), fetch(videos, f"{token}.mp4", Range="bytes=2-4")
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, b"0123456789", "video/mp4")
    assert whole.headers["cache-control"] == "no-store" and whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-disposition"] == 'inline; filename="prediction.mp4"'
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    for wrong in (first.name, f"{token[:-1]}.mp4", "x" * 5000, "%00", "%ff.mp4", f"{token}.mp4.mp4"):
        refused = fetch(videos, wrong)
        assert refused.status_code == 404 and refused.json()["code"] == "unknown_video", wrong
    for outside in ("../secret.mp4", f"../videos/{first.name}", "", "\udcff"):
        with pytest.raises(RefusedError):
            videos.response(outside)
    first.unlink()
    assert sorted(fetch(videos, f"{one}.mp4").status_code for one in (token, other)) == [200, 404], (
        "somebody deleted it"
    )


def test_videos_go_when_their_time_is_over_or_others_need_their_place(tmp_path: Path) -> None:
    clock = Clock()
    videos = AnnotatedVideos(tmp_path, seconds=60, max_bytes=25, clock=clock)
    first = kept(videos)
    clock.now += 30
    second, third = kept(videos), kept(videos)
    assert videos.used == 20 and [fetch(videos, one).status_code for one in (first, second, third)] == [404, 200, 200]
    late = videos.begin()
    videos.discard(late)
    late.write_bytes(b"by a worker that was given up")
    clock.now += 59.9
    assert fetch(videos, third).status_code == 200
    clock.now += 0.1
    assert fetch(videos, third).status_code == 404 and len(os.listdir(tmp_path)) == 3, "also before the sweep"
    videos.sweep_now()
    assert os.listdir(tmp_path) == [] and videos.used == 0


def test_a_video_that_is_being_sent_is_deleted_afterwards(tmp_path: Path) -> None:
    videos = AnnotatedVideos(tmp_path, max_bytes=25)
    token = kept(videos)
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            kept(videos)
            kept(videos)  # the first has to go
            assert len(os.listdir(tmp_path)) == 3
        sent.append(message.get("body", b""))

    scope = {"type": "http", "method": "GET", "headers": [], "extensions": {}, "asgi": {"spec_version": "2.4"}}
    asyncio.run(videos.response(token)(scope, None, send))  # type: ignore[arg-type]
    assert b"".join(sent) == b"0123456789" and len(os.listdir(tmp_path)) == 2


def test_the_sweeper_ends_with_an_empty_folder(tmp_path: Path) -> None:
    async def run() -> None:
        videos = AnnotatedVideos(tmp_path, seconds=0.04)
        kept(videos)
        task = asyncio.create_task(videos.sweep())
        async with asyncio.timeout(10):
            while os.listdir(tmp_path):
                await asyncio.sleep(0.01)
        kept(videos)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert os.listdir(tmp_path) == []


PAGE = """<video muted></video><pre></pre><script>
async function predict(url, model, labels) {
  const body = new FormData();
  body.append("video", await (await fetch("/v.webm")).blob(), "clip-autt-recording.webm");
  if (model) body.append("model", model);
  body.append("labels", JSON.stringify(labels));
  const response = await fetch(url, { method: "POST", body });
  const result = await response.json();
  if (response.ok) document.querySelector("video").src = result.annotatedVideoUrl;
  return [response.status, result];
}
</script>"""


@pytest.mark.slow
def test_a_page_of_another_site_records_asks_and_plays(tmp_path: Path) -> None:
    """As the public interface does: from its own address, with a recording of the browser."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no chromium on this machine")
    model = save_model(small_source(), tmp_path / "model")
    with serving() as site, served(model, tmp_path / "runs", origins=(site.url,)) as config:
        site.pages["/"] = Page(PAGE.encode(), headers={"Content-Type": "text/html"})
        site.pages["/v.webm"] = Page(recorded_webm(face_frames(75)), headers={"Content-Type": "video/webm"})
        asyncio.run(use(chromium, site.url, f"{config.url}/api/predict", tmp_path))


async def use(chromium: str, page: str, address: str, folder: Path) -> None:
    async with open_page(chromium, folder / "profile", page) as tab:
        await tab.wait_for("typeof predict === 'function'")
        status, found = await tab.evaluate(f"predict('{address}', 'PAIN', ['No Pain', 'Pain'])")
        assert status == 200 and list(found["scores"]) == ["No Pain", "Pain"] and found["label"] in found["scores"], (
            found
        )
        assert sum(found["scores"].values()) == pytest.approx(1, abs=1e-4)
        assert found["message"].startswith(
            "The backbone 'embedded' was trained on rendered faces only, and this video is"
        )
        assert found["annotatedVideoUrl"].startswith(address.removesuffix("predict") + "videos/")
        await tab.wait_for("document.querySelector('video').readyState >= 3")
        shape = "(v => [v.videoWidth, v.videoHeight % 2, v.error])(document.querySelector('video'))"
        assert await tab.evaluate(shape) == [960, 0, None]
        assert await tab.evaluate("document.querySelector('video').duration") == pytest.approx(3.0, abs=0.1)
        status, found = await tab.evaluate(f"predict('{address}', 'stress', ['Stress', 'Neutral'])")
        assert (status, found["code"], found["detail"]) == (404, "unknown_model", "no model 'stress'; served are: pain")
        status, found = await tab.evaluate(f"predict('{address}', null, ['Pain', 'Stress', 'Neutral'])")
        assert (
            status == 200 and list(found["scores"]) == ["Pain", "Stress", "Neutral"] and not found["scores"]["Stress"]
        )
        status, found = await tab.evaluate(f"predict('{address}', 'pain', ['Pain', 'Joy', 'Neutral'])")
        assert (status, found["code"]) == (422, "unknown_labels")
        assert found["detail"] == "'Joy' names no class of the model; its classes: neutral, pain"
        assert not [one for one in tab.complaints if "CORS" in one or "blocked" in one]
