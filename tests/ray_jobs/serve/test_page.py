"""The page in a real browser: with a server of fixed answers, and with the real one and a camera that sees a face."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from clipautt.datasets.synthetic.generate import SyntheticConfig, plan, render_clip
from clipautt.datasets.synthetic.identity import draw_identity
from clipautt.model.checkpoint import save_checkpoint
from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.settings import ServeConfig
from ray_jobs.serve.web import schemas
from ray_jobs.serve.web.door import Door, allowed_hosts
from tests.support.browser import Page, find_chromium, open_page, write_camera
from tests.support.fakes import numbered_frames, write_video
from tests.support.listening import listening
from tests.support.serving import served, small_source

PAGE = resources.files("ray_jobs.serve") / "page"
HOSTILE = "<img src=x onerror=alert(1)> \"'&amp;"
KEY = "a key"
NUMBERS = "[...document.querySelectorAll('#probabilities .number')].map(line => line.textContent)"
SHOWN = "document.getElementById('{}')?.hidden === false"


def browse(folder: Path, url: str, use: Callable[[Page], Coroutine[Any, Any, None]], **options: Any) -> Page:
    """Use a page in a new browser; it is only let ask its own server, and must have nothing to complain of."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no chromium on this machine")

    async def session() -> Page:
        async with open_page(chromium, folder / "profile", url, **options) as page:
            try:
                await use(page)
            except BaseException:
                await page.screenshot(folder / "failed.png")
                raise
            return page

    page = asyncio.run(session())
    own = (url, url.replace("http", "ws", 1), "blob:", "data:", "about:")
    assert [asked for asked in page.requested if not asked.startswith(own)] == []
    assert [said for said in page.complaints if "the server responded with a status of" not in said] == []
    return page


async def shown(page: Page, element_id: str) -> None:
    """Wait until something is shown."""
    await page.wait_for(SHOWN.format(element_id))


def test_the_page_asks_no_other_machine_and_has_no_code_in_its_html() -> None:
    files = {path.name: path.read_text() for path in Path(str(PAGE)).iterdir()}
    assert {"index.html", "docs.html", "page.css", "page.js"} <= set(files)
    for name, text in files.items():
        assert not re.search(
            r"https?:|//[\w.]+\.\w|@import|url\((?!#)", text.replace("http://www.w3.org/2000/svg", "")
        ), name
        for linked in re.findall(r'(?:src|href)="([\w./]+)"|from "\./([\w.]+)"', text):
            target = next(filter(None, linked))
            assert target in {*files, ".", "docs", "openapi.json"}, f"{name} wants {target}"
        if name.endswith(".html"):
            assert "<script>" not in text and not re.search(r"\s(on\w+|style)=", text), name
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text, name


# Against fixed answers


def fixed_answer(**changes: Any) -> dict[str, Any]:
    """An answer in which one action unit moves and the face is missing for a while, by the contract."""
    times = [0.5 + 0.1 * index for index in range(11)]
    rising = [0.1, 0.1, 0.1, 0.2, 0.3, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1]
    still = [0.2] * len(times)
    unit = {"code": "AU4", "name": "Brow lowerer", "phrase": HOSTILE, "rise": 0.2}
    frames = [0.08 * index for index in range(25)]
    some = [None if 10 <= index < 13 else 8.0 for index in range(25)]
    answer = {
        "model": "pain",
        "label": HOSTILE,
        "probabilities": {"neutral": 0.25, HOSTILE: 0.75},
        "window_start_seconds": 0.7,
        "window_end_seconds": 1.1,
        "top_action_units": [unit],
        "action_units": {
            "time_seconds": times,
            "codes": {"AU4": rising, "AU12": still, "AU39": rising},
            "names": {"AU4": "AU4 Brow lowerer", "AU12": HOSTILE, "AU39": "AU39 Nostril compressor"},
            "not_learned": ["AU39"],
        },
        "entropy": [0.5] * len(times),
        "face_boxes": {
            "time_seconds": frames,
            **{name: some for name in ("x", "y")},
            "side": [None if value is None else 48.0 for value in some],
            "tilt": [None if value is None else 10.0 for value in some],
            "score": [None if value is None else 0.9 for value in some],
            "found": [value is not None for value in some],
        },
        "personalized_for": HOSTILE,
        "adapt": "none",
        "before": {
            "label": "neutral",
            "probabilities": {"neutral": 0.6, HOSTILE: 0.4},
            "window_start_seconds": 0.5,
            "window_end_seconds": 0.9,
            "top_action_units": [],
        },
        "warnings": [HOSTILE, "the face is found in 22 of 25 frames"],
        "warning_codes": ["unseen_footage", "few_faces"],
        "decoder": "pyav",
        "checkpoint": "0" * 16,
        "duration_seconds": 2.0,
        "seconds": 0.4,
        "timings": {"decode": 0.1, "encode": 0.2},
        "others": [],
    }
    return schemas.Answer.model_validate(answer | changes).model_dump()


def fixed_models() -> dict[str, Any]:
    model = {
        "classes": ["neutral", "pain"],
        "checkpoint": "0" * 16,
        "backbone": "embedded",
        "trained_on": {"the checkpoint": HOSTILE},
        "detector": "none",
        "frames_per_second": 12.5,
        "window_frames": 6,
        "action_units": {},
        "not_learned": [],
    }
    models = [model | {"name": "pain", "rendered_only": True}, model | {"name": "stress", "rendered_only": False}]
    limits = {"max_bytes": 300_000, "max_seconds": 4, "max_pixels": 1e6, "max_frames": 100, "max_videos": 2}
    facts = {"models": models, "limits": limits, "adapt": "default", "per_video": "entropy", "keys_needed": True}
    return schemas.Models.model_validate(facts).model_dump()


def fixed_server(forms: list[dict[str, Any]]) -> FastAPI:
    """Answers that never change, by the contract; `forms` gets what was sent to it."""
    app = FastAPI(docs_url=None)

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Any]) -> Any:
        if request.url.path.startswith("/v1") and request.headers.get("authorization") != f"Bearer {KEY}":
            return refused(Refusal("key_missing", "this server needs an API key"))
        return await go_on(request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return fixed_models()

    @app.get("/v1/subjects")
    async def subjects() -> dict[str, Any]:
        return {"subjects": [HOSTILE]}

    @app.get("/v1/subjects/{subject_id:path}")
    async def subject(subject_id: str) -> Any:
        stored = {"since": "2026-11-28T12:00:00Z", "method": "default", "clips": 2, "frames": 50, "seconds": 4.0}
        facts = {"subject_id": subject_id, "kept_clips": 0, "made_by": "server"}
        return facts | {"models": {"pain": stored | {"warnings": [HOSTILE]}}}

    @app.put("/v1/subjects/{subject_id:path}", status_code=202)
    async def personalize(subject_id: str) -> dict[str, Any]:
        problem = Refusal("no_face", "no face was found in the video").body
        job = {"job": "1", "subject_id": subject_id, "status": "failed", "done": 1, "total": 1, "error": problem}
        return schemas.Job.model_validate(job).model_dump()

    @app.post("/v1/predict")
    async def predict(request: Request) -> Any:
        async with request.form() as form:
            forms.append({name: form.getlist(name) for name in form if name != "video"})
        if len(forms) == 1:
            return refused(Refusal("busy", "16 videos wait already", retry_seconds=7))
        if len(forms) == 2:
            return fixed_answer()
        second = fixed_answer(model="stress", label="neutral", top_action_units=[], before=None)
        return fixed_answer(others=[second], personalized_for=None, before=None)

    app.mount("/", StaticFiles(directory=str(PAGE), html=True))
    return app


def refused(refusal: Refusal) -> JSONResponse:
    waiting = {"retry-after": str(refusal.retry_seconds)} if refusal.retry_seconds else {}
    return JSONResponse(refusal.body, refusal.status, headers=waiting)


def test_the_page_shows_what_the_server_says(tmp_path: Path) -> None:
    """A key, a busy server, an answer full of HTML, several models, a failed personalization; by keyboard alone."""
    video = write_video(tmp_path / "face.mp4", numbered_frames(50))
    forms: list[dict[str, Any]] = []

    async def use(page: Page) -> None:
        await page.look(width=380)
        await shown(page, "key-form")
        assert await page.evaluate("document.activeElement.id") == "key"
        await page.type(KEY)
        await page.press("Enter")
        await shown(page, "clip")
        assert await page.evaluate("sessionStorage.length + ',' + localStorage.length + document.cookie") == "1,0"
        trained = await page.text("#trained-on")
        assert trained.startswith(f"pain (neutral, pain). Trained on: the checkpoint: {HOSTILE}. A part of it has seen")
        await page.wait_for("document.querySelectorAll('#who option').length === 3")
        stops = ["model", "who", "adapt", "tab-clip", "video", "record-open", "predict"]
        assert await tab_stops(page, len(stops)) == stops, "the page cannot be used by keyboard alone"
        await page.choose("#who", HOSTILE)
        await page.wait_for(f"document.getElementById('person-state').innerText.includes({HOSTILE!r})")

        await page.press("Enter")
        await shown(page, "error")
        assert await page.text("#error") == "Choose or record a video first."
        await page.choose_file("#video", video)
        await page.press("Enter")
        await page.wait_for("document.getElementById('error-help').innerText.includes('Retry')")
        assert (await page.text("#error-detail"), (await page.text("#error-help"))[-17:]) == (
            "16 videos wait already.",
            "Try again in 7 s.",
        )
        await page.press("Enter")
        await shown(page, "result")
        assert forms[1] == {"model": ["pain"], "subject_id": [HOSTILE], "adapt": ["none"]}
        await the_answer_is_shown(page)
        await moments_are_reached(page)

        await page.choose("#model", "\0all")
        await page.click("#predict")
        await page.wait_for("document.querySelectorAll('#answers input').length === 2")
        assert forms[2]["model"] == ["pain", "stress"]
        await page.click("#answers label:last-of-type")
        await page.wait_for("document.getElementById('label').innerText === 'neutral'")
        assert await page.text("#units") == "No action unit rose over its usual level."
        assert await page.evaluate("document.getElementById('units-before').hidden")

        await page.click("#personalize")
        await page.wait_for("document.getElementById('error-detail').innerText === 'No face was found in the video.'")
        assert "larger, brighter or turned to the camera" in await page.text("#error-help")
        await page.click("#record-open")
        await page.wait_for("document.getElementById('error-detail').innerText === 'No camera was found.'")
        await page.click("#forget-key")
        await shown(page, "key-form")
        assert await page.evaluate("sessionStorage.length") == 0

    door = Door(fixed_server(forms), hosts=allowed_hosts("127.0.0.1"), max_body_bytes=1_000_000)
    with listening(door) as listener:
        browse(tmp_path, f"{listener.url}/", use)


async def tab_stops(page: Page, count: int) -> list[str]:
    """What the Tab key reaches, by id."""
    stops = []
    for _ in range(count):
        await page.press("Tab")
        stops.append(await page.evaluate("document.activeElement.id"))
    return stops


async def the_answer_is_shown(page: Page) -> None:
    assert await page.text("#label") == HOSTILE
    assert await page.evaluate("document.querySelector('#result img, #choices img')") is None
    assert await page.text("#for-whom") == f"Model pain, personalized for {HOSTILE}."
    above = "document.getElementById('warnings').compareDocumentPosition(document.getElementById('label'))"
    assert await page.evaluate(above) == 4, "the warnings stand below the label"
    warned = "[...document.querySelectorAll('#warnings li')].map(line => line.innerText)"
    assert await page.evaluate(warned) == [f"{HOSTILE}.", "The face is found in 22 of 25 frames."]
    assert await page.evaluate(NUMBERS) == ["25.0 % (before: 60.0 %)", "75.0 % (before: 40.0 %)"]
    assert await page.text("#without") == "Without personalization: neutral"
    assert await page.text("#units li") == f"{HOSTILE} AU4, Brow lowerer\n+0.200"
    assert await page.text("#units-before-list") == "No action unit rose over its usual level."
    assert await page.text("#boxed") == "The face is not found in 3 of 25 frames that were looked at (hatched)."
    assert await page.evaluate("document.querySelectorAll('#strip .missing').length") == 3
    wide = "[...document.querySelectorAll('*')].filter(one => one.getBoundingClientRect().right > innerWidth)"
    assert await page.evaluate(f"{wide}.map(one => one.id || one.tagName)") == [], "the page is wider than a phone"


async def moments_are_reached(page: Page) -> None:
    """A click on the heat map and the arrow keys go to a moment; the face box follows."""
    await page.wait_for("document.getElementById('player').readyState >= 2")
    box = "document.querySelector('#face rect')?.getAttribute('transform')"
    assert await page.evaluate(box) == "rotate(10 32 32)"
    await page.evaluate("document.getElementById('heatmap').focus()")
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp"):
        await page.press(key)
    assert await page.text("#readout") == "0.90 s, AU4 Brow lowerer: +0.200 to its usual level, similarity 0.300"
    value = "document.getElementById('heatmap').getAttribute('aria-valuetext')"
    assert await page.evaluate(value) == await page.text("#readout")
    await page.wait_for("Math.abs(document.getElementById('player').currentTime - 0.9) < 0.05")
    await page.wait_for(f"{box} === undefined")  # The face is missing there.
    await page.press("End")
    await page.wait_for("Math.abs(document.getElementById('player').currentTime - 1.5) < 0.05")
    await page.wait_for(f"{box} === 'rotate(10 32 32)'")
    await page.click("#heatmap", at=(0.3, 0.3))
    await page.wait_for("document.getElementById('player').currentTime < 1")
    assert await page.evaluate("document.querySelectorAll('#timeline .series').length") == 1


# Against the real server


def rendered_face(size: int) -> npt.NDArray[np.uint8]:
    """A rendered person who shows pain, [T, size, size, 3]."""
    config = SyntheticConfig(source_subjects=0, source_val_subjects=0, target_subjects=1, size=size)
    [person] = plan(config)
    return render_clip(draw_identity(person.identity_seed), person.clips[1], config)[1]


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_camera(tmp_path_factory.mktemp("camera") / "face.y4m", rendered_face(240))


@pytest.fixture(scope="module")
def server(no_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeConfig]:
    folder = tmp_path_factory.mktemp("served")
    models = {}
    for seed, name in enumerate(("pain", "second")):
        save_checkpoint(small_source(seed=seed, subject_baseline="median").checkpoint, folder / name)
        models[name] = str(folder / name)
    with served(folder, folder / "runs", models=models, max_upload_mb=2.0, max_seconds=6.0) as config:
        yield config


@pytest.mark.slow
def test_a_person_records_is_remembered_and_forgotten(server: ServeConfig, camera: Path, tmp_path: Path) -> None:
    """Record, predict, personalize, predict, forget, predict: as a person would, with what is stored looked at."""
    stored = f"{server.url}/v1/subjects/{quote(HOSTILE, safe='')}"

    async def use(page: Page) -> None:
        await page.wait_for("document.querySelectorAll('#who option').length === 2")
        await page.choose("#who", "\0new")
        await page.evaluate("document.getElementById('subject').focus()")
        await page.type(HOSTILE)
        assert "Nothing is stored for" in await page.text("#person-state")
        await page.click("#record-open")
        await shown(page, "recorder")
        await page.choose("#record-seconds", "4")
        await page.click("#record-start")
        await shown(page, "preview")
        assert (await page.text("#chosen")).startswith("recording.webm (")

        plain = await predicted(page)
        assert await page.text("#for-whom") == "Model pain, not personalized."
        assert "trained on rendered faces only" in await page.text("#warnings")
        assert 3.5 < await page.evaluate("document.getElementById('player').duration") < 5

        await page.click("#personalize")
        await page.wait_for("document.getElementById('person-status').innerText.startsWith('Personalized for')")
        facts = httpx.get(stored).json()
        assert (facts["made_by"], facts["kept_clips"], list(facts["models"])) == ("server", 0, ["pain", "second"])
        assert await predicted(page) != plain
        assert await page.text("#for-whom") == f"Model pain, personalized for {HOSTILE}."
        assert (await page.text("#without")).startswith("Without personalization: ")

        await page.click("#forget")
        assert await page.evaluate("document.activeElement.id") == "forget-no"
        await page.press("Enter")
        assert httpx.get(stored).status_code == 200
        await page.click("#forget")
        await page.click("#forget-yes")
        await page.wait_for("document.getElementById('person-status').innerText.startsWith('Forgotten.')")
        assert httpx.get(stored).status_code == 404
        assert await predicted(page) == plain
        await page.screenshot(tmp_path / "page.png")

    browse(tmp_path, f"{server.url}/", use, camera=camera)
    assert not list((server.folder / "subjects").rglob("*.safetensors"))


async def predicted(page: Page) -> list[str]:
    """Press the button, and the probabilities that are shown then."""
    await page.click("#predict")
    await page.wait_for("document.getElementById('result').hidden")
    await shown(page, "result")
    await page.wait_for("document.getElementById('player').readyState >= 2")
    return list(await page.evaluate(NUMBERS))


@pytest.mark.slow
def test_a_live_session_with_a_resting_face(server: ServeConfig, camera: Path, tmp_path: Path) -> None:
    status = "document.getElementById('live-status').innerText"

    async def use(page: Page) -> None:
        await shown(page, "clip")
        await page.click("#tab-live")
        await page.click("#live-first")
        await page.click("#live-start")
        await page.wait_for(f"{status}.startsWith('Resting face taken')")
        await page.wait_for("document.getElementById('live-basis').innerText.includes('your resting face')")
        await page.wait_for("document.querySelectorAll('#live-probabilities dt').length === 2")
        assert await page.evaluate("document.querySelectorAll('#live-chart .series').length") == 5
        assert (await page.text("#live-basis")).endswith("The answer is personalized.")
        assert re.match(r"\d+\.\d frames a second; \d+ dropped; answer after \d+ ms", await page.text("#live-facts"))
        await page.click("#live-rest")
        await page.wait_for(f"{status}.startsWith('Keep a resting face')")
        await page.wait_for(f"{status}.startsWith('Resting face taken')")
        await page.screenshot(tmp_path / "live.png")
        await page.click("#live-start")
        assert await page.text("#live-status") == "Stopped."

    browse(tmp_path, f"{server.url}/", use, camera=camera)


@pytest.mark.slow
def test_what_cannot_be_used_is_explained(server: ServeConfig, tmp_path: Path) -> None:
    frames = rendered_face(96)
    video = write_video(tmp_path / "face.mp4", frames)
    long = write_video(tmp_path / "long.mp4", np.concatenate([frames, frames]))
    contents = {"big.mp4": bytes(2_100_000), "broken.mp4": video.read_bytes()[:2000], "empty.mp4": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    async def use(page: Page) -> None:
        await shown(page, "clip")
        for path, detail, help in (
            (tmp_path / "big.mp4", "The file is too large; at most 2\u00a0MB are allowed.", "Send a shorter video"),
            (long, "The video is 7.7 s long; at most 6 s are allowed.", "Cut the video, or make its frames smaller"),
            (tmp_path / "broken.mp4", "The file cannot be read as a video", "Send MP4 or WebM."),
            (tmp_path / "empty.mp4", "The file is empty.", "Choose another file."),
        ):
            await page.choose_file("#video", path)
            await page.click("#predict")
            await shown(page, "error")
            assert (await page.text("#error-detail")).startswith(detail), path
            assert (await page.text("#error-help")).startswith(help), path
        await page.choose_file("#video", video)
        numbers = await predicted(page)
        assert await page.evaluate("document.getElementById('error').hidden")
        answer = httpx.post(f"{server.url}/v1/predict", files={"video": video.read_bytes()}, timeout=60).json()
        assert numbers == [f"{100 * share:.1f} %" for share in answer["probabilities"].values()]
        assert await page.text("#label") == answer["label"]

    browse(tmp_path, f"{server.url}/", use)
