"""The server: what it refuses and in which words, and one real Ray Serve that answers over HTTP."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from clipautt.action_units import VOCABULARY
from clipautt.adaptation.method import SavedState
from clipautt.adaptation.personalization import Personalization, save_personalization, subject_file
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.model.checkpoint import Checkpoint, save_checkpoint
from clipautt.predictor import Predictor
from clipautt.settings import one_line
from ray_jobs.platform.cluster import ClusterConfig
from ray_jobs.platform.configuration import complete
from ray_jobs.serve import answers as serve_answers
from ray_jobs.serve import uploads as serve_uploads
from ray_jobs.serve.answers import Service
from ray_jobs.serve.job import ServeConfig, config_of, serving, start
from ray_jobs.serve.uploads import Limits, Refusal, RefusedError, check_video, private_file, without_paths
from ray_jobs.serve.web import Answer, Health, make_app
from tests.support.browser import find_chromium, open_page
from tests.support.configs import adapt_config
from tests.support.fakes import CONTEXT, fake_checkpoint, numbered_frames, write_video
from tests.support.footage import write_cover

SMALL_UPLOADS: dict[str, Any] = {"max_upload_mb": 0.3, "max_seconds": 4.0, "max_pixels": 128 * 128}
LIMITS = ServeConfig(**SMALL_UPLOADS).limits
ODD_SUBJECT = "../Ü b/%2e.. '\"<i>"
ROOT = Path(__file__).resolve().parents[3]


class Pipe:
    """A place to write that cannot seek: what is recorded into it has no duration, as from a browser."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> int:
        self.content += bytes(data)
        return len(data)


def face_frames(count: int = 50, *, size: int = 64) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Frames that change in the middle of the clip, so that windows differ."""
    frames = np.full((count, size, size, 3), 180, np.uint8)
    frames[:, size // 3 : size // 3 + 4, size // 4 : -size // 4] = 60
    frames[count // 3 : count // 2, size // 2 :, :, 1] = 30
    return frames


def recorded_webm(frames: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """A video as a browser's recorder writes it: WebM without a duration."""
    pipe = Pipe()
    with av.open(pipe, "w", format="webm") as container:
        stream: Any = container.add_stream("libvpx", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return bytes(pipe.content)


def audio_file(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        for _ in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def save_prompts(folder: Path, checkpoint: Checkpoint, source: Source, subject: str, *, shift: float = 1.0) -> Path:
    """Adapted prompts of a subject: the source context moved far enough to change every answer."""
    context = source.context * (1 + shift)
    config = adapt_config(objective="infomax", subject_baseline=checkpoint.spec.subject_baseline)
    centre = torch.zeros(source.backbone.feature_dim)
    path = folder / subject_file(subject)
    with torch.no_grad():
        saved = SavedState({"context": context, "au_embeddings": source.au_embeddings_of(context)})
    save_personalization(Personalization(subject, config, centre, saved), path, checkpoint=checkpoint.fingerprint)
    return path


@pytest.fixture(scope="module")
def source() -> Source:
    backbone = load_backbone(BackboneConfig())
    checkpoint = fake_checkpoint(backbone=backbone, phrases=[unit.phrase for unit in VOCABULARY[:8]])
    assert checkpoint.spec.context == CONTEXT
    return Source(checkpoint, backbone)


@pytest.fixture(scope="module")
def model_folder(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `checkpoint/` and `prompts/` of two subjects."""
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(source.checkpoint, folder / "checkpoint")
    for subject in ("s1", ODD_SUBJECT):
        save_prompts(folder / "prompts", source.checkpoint, source, subject)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "face.mp4", face_frames())


@pytest.fixture
def service(source: Source, model_folder: Path, tmp_path: Path) -> Service:
    prompts = shutil.copytree(model_folder / "prompts", tmp_path / "prompts")
    return Service(Predictor(source, personalizations=prompts), LIMITS)


def left_behind() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("clipautt-upload-*"))


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "host='0.0.0.0': should be 127.0.0.1 or localhost; other machines may not connect"),
        ({"host": "::1"}, "host='::1': should be 127.0.0.1 or localhost"),
        ({"host": "example.org"}, "host='example.org': should be 127.0.0.1 or localhost"),
        ({"port": 0}, "port=0: should be greater than or equal to 1"),
        ({"port": 65536}, "port=65536: should be less than or equal to 65535"),
        ({"replicas": 0}, "replicas=0: should be greater than 0"),
        ({"max_seconds": 0}, "max_seconds=0: should be greater than 0"),
    ],
)
def test_a_wrong_setting_is_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ServeConfig(Path("checkpoint"), **settings)
    assert one_line(caught.value).startswith(message)


def test_the_configuration_of_the_project(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model_folder, tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    config = config_of(complete("serve"))
    assert config == ServeConfig(
        tmp_path / "runs/demo/checkpoint",
        prompts=tmp_path / "runs/demo/prompts",
    )
    assert config.limits == Limits(max_bytes=50_000_000, max_seconds=60, max_pixels=3840 * 2160)
    assert config_of(complete("serve", ["max_upload_mb=0.5", "port=81"])).limits.max_bytes == 500_000


# Uploads


def test_the_private_file_is_private_and_goes_away() -> None:
    with pytest.raises(KeyError), private_file(b"secret") as path:
        assert path.read_bytes() == b"secret"
        assert path.parent.stat().st_mode & 0o077 == 0
        raise KeyError
    assert not path.parent.exists()


def test_the_length_is_measured_where_the_file_does_not_state_it(tmp_path: Path, video: Path) -> None:
    assert check_video(video, LIMITS) == pytest.approx(2.0)
    path = tmp_path / "recorded"
    path.write_bytes(recorded_webm(face_frames()))
    with av.open(str(path)) as container:
        assert container.duration is None, "the test's file states its duration, so it tests nothing"
    assert check_video(path, LIMITS) == pytest.approx(2.0, abs=0.05)


def refused(path: Path, limits: Limits = LIMITS) -> Refusal:
    with pytest.raises(RefusedError) as caught:
        check_video(path, limits)
    assert str(path.parent) not in caught.value.refusal.detail
    return caught.value.refusal


def test_what_is_over_a_limit_is_refused_undecoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = write_video(tmp_path / "wide.mp4", face_frames(5, size=160))
    long = write_video(tmp_path / "long.mp4", face_frames(126))
    endless = tmp_path / "endless"
    endless.write_bytes(recorded_webm(face_frames(126)))
    dense = write_video(tmp_path / "dense.mp4", numbered_frames(60), milliseconds=range(60))
    assert refused(wide) == Refusal(422, "the frames are 160 × 160 pixels; at most 16,384 pixels are allowed")
    assert refused(long) == Refusal(422, "the video is 5.0 s long; at most 4 s are allowed")
    assert refused(endless).status == 422
    assert refused(endless).detail.endswith("at most 4 s are allowed")
    monkeypatch.setattr(serve_uploads, "_MAX_FRAMES_PER_SECOND", 10)
    assert refused(dense).detail == "the video has more than 10 frames per second"


def test_what_is_no_video_is_refused(tmp_path: Path, video: Path) -> None:
    files = {
        "noise": b"hello " * 500,
        "header": b"\0\0\0\x18ftypmp42" + bytes(4000),
        "half": video.read_bytes()[: video.stat().st_size // 2],
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert refused(path).status == 415
        assert "(pyav: Invalid data found" in refused(path).detail
    said = "the file cannot be read as a video: no video stream"
    assert refused(audio_file(tmp_path / "audio.mp4")) == Refusal(415, said)
    assert refused(write_cover(tmp_path / "song")).detail == f"{said}, only the cover picture of a sound file"
    (tmp_path / "video").write_bytes(b"\xff\xd8\xff\xe0" + bytes(500))
    assert refused(tmp_path / "video").detail == "the file cannot be read as a video: it is a picture (JPEG)"


def test_the_length_is_that_of_the_picture(tmp_path: Path) -> None:
    """Two seconds of picture with ten of sound; the sound is not looked at."""
    path = write_video(tmp_path / "sound.mp4", face_frames(50), sound_seconds=10)
    assert check_video(path, LIMITS) == pytest.approx(2.0)


def test_a_file_that_names_other_files_is_not_opened(tmp_path: Path, video: Path) -> None:
    """Playlists could make the decoder read this machine's files, or ask other machines."""
    shutil.copy(video, tmp_path / "secret.mp4")
    playlists = {
        "list": b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "script": b"ffconcat version 1.0\nfile secret.mp4\n",
    }
    for name, content in playlists.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert refused(path).status == 415
    with av.open(str(tmp_path / "script")) as container:
        assert container.streams.video, "FFmpeg itself no longer follows the script, so this test proves nothing"


def test_paths_of_this_machine_are_not_told() -> None:
    path = Path("/tmp/clipautt-upload-x1/video")
    said = "clip: /tmp/clipautt-upload-x1/video failed ([1] /opt/lib-2/decoder.cc:151: no stream, 1/2 read)"
    assert without_paths(said, path) == "clip: video failed ([1] decoder.cc:151: no stream, 1/2 read)"


# Answers


def test_an_answer_holds_what_the_predictor_says(service: Service, source: Source, video: Path) -> None:
    answer = service.predict(video.read_bytes(), None)
    expected = Predictor(source).predict(video)
    assert Answer.model_validate(answer).model_dump() == answer
    assert answer["label"] == expected.label
    assert answer["probabilities"] == expected.probabilities
    assert list(answer["action_units"]["codes"]) == [unit.code for unit in VOCABULARY[:8]]
    assert np.allclose(answer["action_units"]["codes"]["AU4"], expected.action_units["AU4"], atol=1e-5)
    assert np.allclose(answer["entropy"], expected.entropy, atol=1e-5)
    assert len(answer["action_units"]["time_seconds"]) == len(answer["entropy"]) > 5
    top = answer["top_action_units"][0]
    unit = next(unit for unit in VOCABULARY if unit.code == expected.top_action_units.index[0])
    assert (top["code"], top["name"], top["phrase"]) == (unit.code, unit.name, unit.phrase)
    assert answer["action_units"]["names"]["AU4"] == "AU4 Brow lowerer"
    assert answer["action_units"]["not_learned"] == list(expected.not_learned)
    unseen, small = answer["warnings"]
    assert (unseen, small) == expected.warnings
    assert unseen.startswith("The backbone 'embedded' was trained on rendered faces only, and this video is not")
    assert "no face was found in 5 frames" in small
    assert answer["personalized_for"] is None
    assert answer["duration_seconds"] == pytest.approx(2.0)


@pytest.mark.parametrize("subject", ["s1", ODD_SUBJECT])
def test_a_subject_gets_its_own_prompts(service: Service, video: Path, subject: str) -> None:
    plain = service.predict(video.read_bytes(), None)
    own = service.predict(video.read_bytes(), subject)
    assert own["personalized_for"] == subject
    assert own["probabilities"] != plain["probabilities"]
    assert subject in service.subjects()


@pytest.mark.parametrize("subject", ["nobody", "../prompts/s1", "s1.safetensors", "/etc/passwd", "x" * 5000, "a\0b"])
def test_an_unknown_subject_is_refused(service: Service, video: Path, subject: str) -> None:
    with pytest.raises(RefusedError, match=r"^no adapted prompts for subject") as caught:
        service.predict(video.read_bytes(), subject)
    assert caught.value.refusal.status == 404


def test_prompts_are_cached_until_their_file_changes(
    service: Service, source: Source, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = serve_answers.load_personalization
    monkeypatch.setattr(
        serve_answers, "load_personalization", lambda path, source: loaded.append(path) or load(path, source)
    )
    first = service.predict(video.read_bytes(), "s1")
    assert service.predict(video.read_bytes(), "s1")["probabilities"] == first["probabilities"]
    assert len(loaded) == 1
    folder = service.predictor.personalizations
    assert folder is not None
    path = save_prompts(folder, source.checkpoint, source, "s1", shift=-2.0)
    os.utime(path, ns=(1, 1))
    assert service.predict(video.read_bytes(), "s1")["probabilities"] != first["probabilities"]
    path.unlink()
    with pytest.raises(RefusedError, match="no adapted prompts"):
        service.predict(video.read_bytes(), "s1")


def test_prompts_of_another_checkpoint_are_refused(service: Service, source: Source, video: Path) -> None:
    other = fake_checkpoint(backbone=source.backbone, phrases=source.checkpoint.spec.phrases, seed=1)
    folder = service.predictor.personalizations
    assert folder is not None
    save_prompts(folder, other, source, "other")
    (folder / "broken.safetensors").write_bytes(b"broken")
    for subject in ("other", "broken"):
        with pytest.raises(RefusedError, match=f"^the prompts of subject '{subject}' cannot be used here") as caught:
            service.predict(video.read_bytes(), subject)
        assert caught.value.refusal.status == 409
        assert str(folder) not in caught.value.refusal.detail


def test_a_video_without_a_label_is_refused_with_the_reason(source: Source, tmp_path: Path) -> None:
    """One frame, and a model that removes the resting face; the answer has no path in it."""
    checkpoint = replace(source.checkpoint, spec=replace(source.checkpoint.spec, subject_baseline="median"))
    service = Service(Predictor(Source(checkpoint, source.backbone)), LIMITS)
    short = write_video(tmp_path / "short.mp4", numbered_frames(1)).read_bytes()
    with pytest.raises(RefusedError, match=r"^no label: too short: 1 frame, fewer than a window of \d+ has") as caught:
        service.predict(short, None)
    assert caught.value.refusal.status == 422 and "/" not in caught.value.refusal.detail


def test_what_the_decoders_said_is_told_without_paths(service: Service, tmp_path: Path) -> None:
    path = write_video(tmp_path / "face.mp4", face_frames(), options={"x264-params": "keyint=250"})
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") if content.index(b"moov") > start else len(content)
    content[start : end - 8] = bytes(end - 8 - start)  # The index stays, and no frame can be decoded.
    before = left_behind()
    with pytest.raises(RefusedError) as caught:
        service.predict(bytes(content), None)
    assert caught.value.refusal.status == 415
    assert re.match(r"video cannot be decoded \(decord: .+; pyav: .+\)$", caught.value.refusal.detail)
    assert "/" not in caught.value.refusal.detail
    assert left_behind() == before


# The web side, without Ray


class LocalModel:
    """The routes' model in this process."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def predict(self, video: bytes, subject: str | None) -> dict[str, Any] | Refusal:
        if subject == "crash":
            raise ZeroDivisionError("a secret")
        try:
            return self.service.predict(video, subject)
        except RefusedError as error:
            return error.refusal

    async def subjects(self) -> list[str] | Refusal:
        return self.service.subjects()

    async def facts(self) -> dict[str, Any] | Refusal:
        return self.service.facts()


def call(service: Service, method: str, path: str, **request: Any) -> httpx.Response:
    """One request to the application, without a network."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(LocalModel(service), LIMITS), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


def detail(response: httpx.Response) -> str:
    assert list(response.json()) == ["detail"]
    return str(response.json()["detail"])


def test_a_prediction_over_the_web(service: Service, video: Path) -> None:
    response = call(service, "POST", "/v1/predict", files={"video": video.read_bytes()}, data={"subject_id": "s1"})
    assert response.status_code == 200
    assert Answer.model_validate(response.json()).personalized_for == "s1"
    empty = call(service, "POST", "/v1/predict", files={"video": video.read_bytes()}, data={"subject_id": ""})
    assert empty.json()["personalized_for"] is None


def test_malformed_requests_are_answered_400(service: Service) -> None:
    for request in (
        {},
        {"data": {"video": "text"}},
        {"files": {"film": b"1"}},
        {"json": {"video": 1}},
        {"files": {"video": b"1"}, "data": {"subject_id": "x" * 201}},
    ):
        response = call(service, "POST", "/v1/predict", **request)
        assert response.status_code == 400, request
        assert detail(response).endswith("a file `video` and, optionally, a text `subject_id`")
    assert call(service, "POST", "/v1/predict", files={"video": b""}).status_code in (400, 415)


def test_a_bug_is_answered_without_its_words(service: Service, video: Path) -> None:
    response = call(service, "POST", "/v1/predict", files={"video": b"x"}, data={"subject_id": "crash"})
    assert response.status_code == 500
    assert detail(response) == "the server failed on this request; its log says why"


# Ray Serve


@pytest.fixture(scope="module")
def server(no_ray: None, model_folder: Path) -> Iterator[ServeConfig]:
    import ray

    assert not ray.is_initialized(), "another test left Ray running"
    config = ServeConfig(
        model_folder / "checkpoint",
        prompts=model_folder / "prompts",
        port=free_port(),
        **SMALL_UPLOADS,
        cluster=ClusterConfig(address="local", num_cpus=2),
    )
    before = left_behind()
    with serving(config) as url:
        assert url == config.url
        yield config
        assert left_behind() == before
    assert not ray.is_initialized()
    assert free(config.port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def post(config: ServeConfig, content: bytes, subject: str | None = None) -> httpx.Response:
    data = {"subject_id": subject} if subject else {}
    return httpx.post(f"{config.url}/v1/predict", files={"video": ("face", content)}, data=data, timeout=60)


def test_the_server_answers(server: ServeConfig, source: Source, video: Path) -> None:
    """End to end: HTTP, Ray Serve, decoders, CLIP, and back; good videos and bad ones."""
    health = Health.model_validate(httpx.get(f"{server.url}/healthz", timeout=60).json())
    assert (health.status, health.checkpoint) == ("ok", source.checkpoint.fingerprint)
    assert (health.backbone, health.subjects, health.limits["max_seconds"]) == ("embedded", 2, 4.0)
    assert health.trained_on == {"the backbone 'embedded'": "rendered faces", "the checkpoint": "not recorded"}
    assert httpx.get(f"{server.url}/v1/subjects").json() == {"subjects": sorted(["s1", ODD_SUBJECT])}
    assert "<title>clipautt</title>" in httpx.get(f"{server.url}/").text

    plain = post(server, video.read_bytes())
    assert plain.status_code == 200, plain.text
    assert plain.json()["probabilities"] == pytest.approx(
        dict(Predictor(source).predict(video).probabilities), abs=1e-5
    )
    recorded = post(server, recorded_webm(face_frames()))
    assert recorded.status_code == 200, recorded.text
    own = post(server, video.read_bytes(), ODD_SUBJECT)
    assert own.json()["personalized_for"] == ODD_SUBJECT

    assert post(server, video.read_bytes(), "nobody").status_code == 404
    assert post(server, b"hello " * 500).status_code == 415
    assert httpx.post(f"{server.url}/v1/predict", data={"a": "b"}).status_code == 400
    assert "/" not in detail(post(server, b"hello " * 500)).replace("/v1/subjects", "")


def test_limits_hold_over_http(server: ServeConfig, tmp_path: Path) -> None:
    assert post(server, write_video(tmp_path / "long.mp4", face_frames(126)).read_bytes()).status_code == 422
    assert post(server, write_video(tmp_path / "wide.mp4", face_frames(5, size=160)).read_bytes()).status_code == 422
    large = post(server, bytes(3_000_000))
    assert (large.status_code, detail(large)) == (413, "the file is too large; at most 0.3 MB are allowed")

    def stream() -> Iterator[bytes]:
        for _ in range(300):
            yield bytes(10_000)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    unannounced = httpx.post(f"{server.url}/v1/predict", content=stream(), headers=headers, timeout=60)
    assert unannounced.status_code == 413


def test_requests_at_once_get_the_same_answers(server: ServeConfig, tmp_path: Path) -> None:
    contents = [write_video(tmp_path / f"{count}.mp4", face_frames(count)).read_bytes() for count in (30, 40, 50, 60)]

    def answer(content: bytes) -> dict[str, Any]:
        response = post(server, content, "s1")
        assert response.status_code == 200, response.text
        return {key: value for key, value in response.json().items() if key != "seconds"}

    one_by_one = [answer(content) for content in contents]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, contents)) == one_by_one


def test_only_this_machine_is_listened_to(server: ServeConfig) -> None:
    assert not free(server.port)
    listening = Path("/proc/net/tcp").read_text().splitlines() if Path("/proc/net/tcp").exists() else []
    local = [line.split()[1] for line in listening[1:] if line.split()[3] == "0A"]
    mine = [address for address in local if address.endswith(f":{server.port:04X}")]
    assert all(address.startswith("0100007F") for address in mine)


def test_a_used_port_is_named(server: ServeConfig) -> None:
    message = rf"^port={server.port}: cannot listen on 127\.0\.0\.1 \(Address already in use\); choose another"
    with pytest.raises(ConnectionError, match=message):
        start(server)


def test_a_cluster_serves_once(server: ServeConfig) -> None:
    with pytest.raises(ValueError, match=r"^this cluster runs Ray Serve already"):
        start(ServeConfig(server.checkpoint, port=free_port()))


# The page in a browser


@pytest.mark.slow
def test_the_page_in_a_browser(server: ServeConfig, video: Path, tmp_path: Path) -> None:
    """A person chooses a clip and a subject, and sees the answer; nothing but this server is asked for anything."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no chromium on this machine")
    asyncio.run(use_the_page(chromium, server, video, tmp_path))


async def use_the_page(chromium: str, server: ServeConfig, video: Path, folder: Path) -> None:
    long = write_video(folder / "long.mp4", face_frames(126))
    big = folder / "big.mp4"
    big.write_bytes(bytes(400_000))
    async with open_page(chromium, folder / "profile", server.url) as page:
        await page.wait_for("document.querySelectorAll('#subjects option').length === 2")
        assert "the backbone 'embedded': rendered faces" in await page.text("#trained-on")
        stops = []
        for _ in range(4):
            await page.press("Tab")
            stops.append(await page.evaluate("document.activeElement.id"))
        assert stops[1:] == ["video", "subject", "predict"], "the page cannot be used by keyboard alone"

        await page.choose_file("#video", big)
        await page.press("Enter")
        await page.wait_for("!document.getElementById('error').hidden")
        assert await page.text("#error") == "The file is too large; at most 0.3 MB are allowed."

        await page.choose_file("#video", long)
        await page.press("Enter")
        await page.wait_for("!document.getElementById('error').hidden")
        assert await page.text("#error") == "The video is 5.0 s long; at most 4 s are allowed"

        await page.choose_file("#video", video)
        await page.evaluate(f"document.getElementById('subject').value = {ODD_SUBJECT!r}")
        await page.press("Enter")
        await page.wait_for("!document.getElementById('result').hidden")
        expected = post(server, video.read_bytes(), ODD_SUBJECT).json()
        assert await page.text("#label") == expected["label"]
        assert await page.text("#for-whom") == f"Personalized for {ODD_SUBJECT}"
        warned = "[...document.querySelectorAll('#warnings li')].map(line => line.innerText)"
        assert await page.evaluate(warned) == expected["warnings"] and len(expected["warnings"]) == 2
        units = "[...document.querySelectorAll('#units li > span:first-of-type')].map(line => line.innerText)"
        shown = await page.evaluate(units)
        assert [line.partition(" AU")[0] for line in shown] == [unit["phrase"] for unit in expected["top_action_units"]]
        assert await page.evaluate("document.querySelectorAll('#timeline .series').length") == len(shown) == 5

        await page.wait_for("document.getElementById('player').readyState >= 2")
        playhead = "Number(document.querySelector('.playhead').getAttribute('x1'))"
        at_start = await page.evaluate(playhead)
        await page.evaluate("document.getElementById('player').currentTime = 1")
        await page.wait_for(f"{playhead} > {at_start} + 100")
        await page.screenshot(folder / "page.png")

        elsewhere = [url for url in page.requested if not url.startswith((server.url, "blob:", "data:", "about:"))]
        assert elsewhere == []
        assert [said for said in page.complaints if "status of 422" not in said] == []


# The command


@pytest.mark.slow
@pytest.mark.parametrize("stopping", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_signal(
    model_folder: Path, video: Path, tmp_path: Path, stopping: signal.Signals
) -> None:
    port = free_port()
    words = [f"checkpoint={model_folder}/checkpoint", f"prompts={model_folder}/prompts", f"port={port}"]
    # What runs in the background of a script ignores interrupts, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.serve", *words, "cluster=local"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"serving on http://127.0.0.1:{port} — Ctrl-C stops\n"
        with video.open("rb") as file:
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/predict", files={"video": file}, timeout=60)
        assert answer.status_code == 200
        process.send_signal(stopping)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        signal.signal(signal.SIGINT, before)
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    assert free(port)


@pytest.mark.slow
def test_mistakes_of_the_command_are_one_line(model_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, message in (
            (["host=0.0.0.0"], "clipautt serve: host='0.0.0.0': should be 127.0.0.1 or localhost"),
            ([f"port={port}"], f"clipautt serve: port={port}: cannot listen on 127.0.0.1 (Address already in use)"),
            (["replicas=500"], "clipautt serve: replicas=500: expected at most"),
            (["prompts=nowhere"], "clipautt serve: prompts="),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "ray_jobs.serve", f"checkpoint={model_folder}/checkpoint", *words],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.startswith(message)
            assert len(done.stderr.splitlines()) == 1
