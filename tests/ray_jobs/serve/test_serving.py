"""One real server: HTTP, Ray Serve, decoders, the encoder, and back."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from clipautt.action_units import VOCABULARY
from clipautt.adaptation.source import Source
from clipautt.model.checkpoint import save_checkpoint
from clipautt.predictor import Predictor
from ray_jobs.serve.application import plan
from ray_jobs.serve.job import start
from ray_jobs.serve.model.check import CLIP
from ray_jobs.serve.settings import ServeConfig
from ray_jobs.serve.web.schemas import Answer, BatchAnswer, Job, Models, Problem, Ready, Subject
from tests.support.fakes import write_video
from tests.support.recordings import face_frames, recorded_webm
from tests.support.server_process import ended, free_port
from tests.support.serving import ODD_SUBJECT, save_model, served, small_source

ROOT = Path(__file__).resolve().parents[3]
SMALL: dict[str, Any] = {"max_upload_mb": 0.3, "max_seconds": 4.0, "max_pixels": 128 * 128, "max_videos": 4}


@pytest.fixture(scope="module")
def source() -> Source:
    return small_source(subject_baseline="median")


@pytest.fixture(scope="module")
def model(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(source, tmp_path_factory.mktemp("model"))
    save_checkpoint(small_source(subject_baseline="median", seed=1).checkpoint, folder / "stress")
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "face.mp4", face_frames())


@pytest.fixture(scope="module")
def server(no_ray: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeConfig]:
    """Two models on one backbone; nothing of its uploads stays."""
    models = {"pain": str(model / "checkpoint"), "stress": str(model / "stress")}
    origins = ("https://lab.example.org",)
    runs = tmp_path_factory.mktemp("runs")
    with served(model, runs, models=models, prompts=model / "prompts", origins=origins, **SMALL) as config:
        yield config
        assert uploads_in(config) == []
    assert not [path for path in config.spool.rglob("*") if path.is_file() and path.parent.name != ".alive"]


def uploads_in(config: ServeConfig) -> list[Path]:
    files = [path for path in (config.spool / "uploads").rglob("*") if path.is_file() and path.parent.name != ".alive"]
    return [path for path in files if path.parent.name != "annotated"]


def post(config: ServeConfig, content: bytes, path: str = "/v1/predict", **fields: Any) -> httpx.Response:
    return httpx.post(f"{config.url}{path}", files={"video": ("face", content)}, data=fields, timeout=60)


def refused(response: httpx.Response) -> tuple[int, str, str]:
    """Status, code and detail; every refusal says what to do, and names no path."""
    problem = Problem.model_validate(response.json())
    assert problem.help and "/tmp" not in problem.detail
    return response.status_code, problem.code, problem.detail


def test_the_server_answers_as_the_predictor_does(server: ServeConfig, source: Source, video: Path) -> None:
    response = post(server, video.read_bytes())
    answer = Answer.model_validate(response.json())
    assert answer.model_dump() == response.json(), "fields that the OpenAPI does not show"
    expected = Predictor(source).predict(video)
    assert (answer.model, answer.label, answer.adapt, answer.before) == ("pain", expected.label, "none", None)
    assert answer.probabilities == pytest.approx(dict(expected.probabilities), abs=1e-5)
    assert list(answer.action_units.codes) == [unit.code for unit in VOCABULARY[:8]]
    assert answer.action_units.codes["AU4"] == pytest.approx(expected.action_units["AU4"].tolist(), abs=2e-5)
    assert answer.entropy == pytest.approx(list(expected.entropy), abs=2e-5)
    assert [unit.code for unit in answer.top_action_units] == list(expected.top_action_units.index)
    assert all(unit.rise > 0 for unit in answer.top_action_units)
    assert (answer.warnings, answer.warning_codes) == (list(expected.warnings), [str(one) for one in expected.cautions])
    assert answer.warnings[0].startswith("The backbone 'embedded' was trained on rendered faces only, and this video")
    assert (answer.decoder, answer.checkpoint) == ("decord", source.checkpoint.fingerprint)
    assert (answer.face_boxes, answer.duration_seconds) == (None, pytest.approx(2.0))
    timings = answer.timings
    assert min(timings.decode, timings.encode, timings.predict) > 0 and timings.batch_videos == 1
    assert timings.decode + timings.encode + timings.predict <= answer.seconds < 60


def test_a_model_of_rendered_faces_says_so_whatever_it_is_shown(server: ServeConfig) -> None:
    said = post(server, CLIP.read_bytes()).json()  # a rendered face
    assert "rendered_only" in said["warning_codes"] and "unseen_footage" not in said["warning_codes"]
    assert said["warnings"][said["warning_codes"].index("rendered_only")] == (
        "The backbone 'embedded' has seen rendered faces only: what is said about real people means nothing."
    )


def test_a_video_is_encoded_once_for_all_models(server: ServeConfig, video: Path) -> None:
    both = post(server, video.read_bytes(), model=["stress", "pain", "stress"]).json()
    single = [post(server, video.read_bytes(), model=name).json() for name in ("stress", "pain")]
    assert [both["model"], *[one["model"] for one in both["others"]]] == ["stress", "pain"]
    assert [both["probabilities"], both["others"][0]["probabilities"]] == [one["probabilities"] for one in single]
    assert both["timings"]["encode"] == both["others"][0]["timings"]["encode"], "one pass for both"
    models = Models.model_validate(httpx.get(f"{server.url}/v1/models").json())
    assert [one.name for one in models.models] == ["pain", "stress"]
    assert models.models[0].classes == ["neutral", "pain"] and models.models[0].rendered_only
    assert (models.keys_needed, models.limits["max_seconds"], models.limits["max_frames"]) == (False, 4.0, 4000)
    unknown = refused(post(server, video.read_bytes(), model="joy"))
    assert unknown == (404, "unknown_model", "no model 'joy'; served are: pain, stress")


def test_what_cannot_be_predicted_is_refused_with_a_code(server: ServeConfig, video: Path, tmp_path: Path) -> None:
    good = video.read_bytes()
    assert post(server, recorded_webm(face_frames())).status_code == 200, "as a browser records it"
    assert refused(post(server, b"hello " * 500))[:2] == (415, "not_a_video")
    long = write_video(tmp_path / "long.mp4", face_frames(126)).read_bytes()
    assert refused(post(server, long)) == (422, "over_limit", "the video is 5.0 s long; at most 4 s are allowed")
    wide = write_video(tmp_path / "wide.mp4", face_frames(5, size=160)).read_bytes()
    assert refused(post(server, wide))[:2] == (422, "over_limit")
    assert refused(post(server, bytes(3_000_000)))[:2] == (413, "too_large")
    assert refused(httpx.post(f"{server.url}/v1/predict", data={"a": "b"}))[:2] == (400, "malformed")
    assert refused(post(server, good, adapt="twice")) == (
        422,
        "wrong_field",
        "adapt='twice'; allowed: none, per_video, online",
    )
    assert refused(post(server, good, adapt="online"))[:2] == (422, "wrong_field")
    assert refused(httpx.get(f"{server.url}/nowhere"))[:2] == (404, "not_found")
    assert refused(httpx.delete(f"{server.url}/v1/predict"))[:2] == (405, "method_not_allowed")
    assert uploads_in(server) == []


def test_a_bad_video_of_a_batch_costs_itself(server: ServeConfig, video: Path) -> None:
    contents = [video.read_bytes(), b"hello " * 500, recorded_webm(face_frames())]
    files = [("video", ("face", content)) for content in contents]
    response = httpx.post(f"{server.url}/v1/predict/batch", files=files, timeout=60)
    items = BatchAnswer.model_validate(response.json()).answers
    assert [one.video for one in items] == [0, 1, 2]
    assert [one.answer is not None for one in items] == [True, False, True]
    assert items[1].error is not None and items[1].error.code == "not_a_video"
    many = httpx.post(f"{server.url}/v1/predict/batch", files=files * 2, timeout=60)
    assert refused(many)[:2] == (413, "too_large")


def test_requests_at_once_get_the_same_answers(server: ServeConfig, tmp_path: Path) -> None:
    contents = [write_video(tmp_path / f"{count}.mp4", face_frames(count)).read_bytes() for count in (30, 40, 50, 60)]

    def answer(content: bytes) -> dict[str, Any]:
        response = post(server, content, subject_id="s1")
        assert response.status_code == 200, response.text
        return {key: response.json()[key] for key in ("probabilities", "before", "personalized_for")}

    one_by_one = [answer(content) for content in contents]
    assert all(one["personalized_for"] == "s1" and one["before"]["probabilities"] for one in one_by_one)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(answer, contents))
    for alone, batched in zip(one_by_one, together, strict=True):
        assert batched["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_a_subject_is_personalized_used_and_forgotten(server: ServeConfig, video: Path, tmp_path: Path) -> None:
    """A resting face is enough; what `clipautt adapt` wrote is served too."""
    good, name = video.read_bytes(), "Anna Müller"
    url = f"{server.url}/v1/subjects/{name}"
    plain = post(server, good, subject_id=name).json()
    assert (plain["personalized_for"], plain["warning_codes"][-1]) == (None, "not_personalized")
    rest = write_video(tmp_path / "rest.mp4", face_frames(100)).read_bytes()
    begun = httpx.put(url, files=[("video", ("a", rest))], data={"model": "pain", "keep": "true"}, timeout=60)
    job = Job.model_validate(begun.json())
    assert (begun.status_code, begun.headers["location"]) == (202, f"/v1/jobs/{job.job}")
    job = Job.model_validate(ended(server.url, begun.json()))
    assert (job.error, job.status, job.done) == (None, "done", 1)
    assert job.subject == Subject.model_validate(httpx.get(url).json())
    assert (job.subject.kept_clips, job.subject.models["pain"].clips, job.subject.made_by) == (1, 1, "server")
    own = post(server, good, subject_id=name).json()
    assert own["personalized_for"] == name
    assert own["before"]["probabilities"] == plain["probabilities"] != own["probabilities"]
    online = post(server, good, subject_id=name, adapt="online").json()
    assert (online["adapt"], online["personalized_for"]) == ("online", name)
    assert httpx.get(url).json()["models"]["pain"]["clips"] == 2

    listed = httpx.get(f"{server.url}/v1/subjects").json()["subjects"]
    assert listed == sorted([name, "s1", ODD_SUBJECT])
    assert httpx.delete(url).json()["erased"]
    assert refused(httpx.get(url))[:2] == refused(httpx.delete(url))[:2] == (404, "unknown_subject")
    assert post(server, good, subject_id=name).json()["probabilities"] == plain["probabilities"]
    left = [path for path in (server.folder / "subjects").rglob("*") if path.is_file() and ".locks" not in path.parts]
    assert left == []


def test_the_interface_of_another_site(server: ServeConfig, video: Path) -> None:
    """The contract of the public web interface: labels as sent, a video that anybody with its address can fetch."""
    fields = {"model": "pain", "labels": json.dumps(["Pain", "No Pain"])}
    files = {"video": ("clip.webm", recorded_webm(face_frames()))}
    origin = {"Origin": "https://lab.example.org"}
    response = httpx.post(f"{server.url}/api/predict", files=files, data=fields, headers=origin, timeout=60)
    assert response.headers["access-control-allow-origin"] == "https://lab.example.org"
    answer = response.json()
    assert set(answer) == {"label", "scores", "message", "annotatedVideoUrl"}
    assert set(answer["scores"]) == {"Pain", "No Pain"} and answer["label"] in answer["scores"]
    assert sum(answer["scores"].values()) == pytest.approx(1)
    shown = httpx.get(answer["annotatedVideoUrl"], headers={"Range": "bytes=0-99"})
    assert (shown.status_code, shown.headers["content-type"], len(shown.content)) == (206, "video/mp4", 100)
    elsewhere = httpx.post(f"{server.url}/api/predict", files=files, data=fields, headers={"Origin": "https://x.org"})
    assert refused(elsewhere)[:2] == (403, "other_site")
    assert refused(httpx.get(f"{server.url}/api/videos/{'x' * 43}.mp4"))[:2] == (404, "unknown_video")


def test_it_is_watched(server: ServeConfig) -> None:
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
    heads = [httpx.head(f"{server.url}{path}") for path in ("/healthz", "/readyz", "/v1/models", "/")]
    assert [(head.status_code, head.content) for head in heads] == [(200, b"")] * 4
    ready = Ready.model_validate(httpx.get(f"{server.url}/readyz").json())
    assert (ready.ready, ready.reason) == (True, "")
    assert ready.replicas == {"decoders": "1 of 1", "encoder": "1 of 1", "web": "1 of 1"}
    figures = httpx.get(f"{server.url}/metrics").text
    assert 'clipautt_serve_requests_total{code="200",method="GET",route="/healthz"} 1.0' in figures
    assert 'clipautt_serve_ready_replicas{deployment="encoder"} 1.0' in figures
    page = httpx.get(f"{server.url}/")
    assert "<title>clipautt</title>" in page.text and "default-src 'none'" in page.headers["content-security-policy"]
    described = httpx.get(f"{server.url}/openapi.json").json()
    assert {"/v1/predict", "/v1/predict/batch", "/v1/subjects/{subject_id}", "/v1/jobs/{job}", "/api/predict"} <= set(
        described["paths"]
    )
    lines = [json.loads(line) for line in (server.folder / "access.log").read_text().splitlines()]
    assert {"/healthz", "/readyz"} <= {line["route"] for line in lines}
    assert "Anna" not in (server.folder / "access.log").read_text()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", "/healthz", headers={"Host": "evil.example"})
    assert connection.getresponse().status == 400


def test_a_used_port_and_a_used_cluster_are_named(server: ServeConfig, model: Path) -> None:
    message = rf"^port {server.port} of 127\.0\.0\.1 is in use; choose another with port=…, or stop what listens there"
    with pytest.raises(ConnectionError, match=message):
        start(plan(server))
    other = ServeConfig(checkpoint=model / "checkpoint", port=free_port(), runs=server.runs)
    with pytest.raises(ValueError, match=r"^this cluster runs Ray Serve already"):
        start(plan(other))


def test_the_web_side_and_the_decoders_load_no_torch() -> None:
    """Nor a decoder that draws an annotated video, for which it loads matplotlib."""
    code = """
import sys, ray_jobs.serve.web.replica, ray_jobs.serve.model.decoders
print(sorted({"torch", "pandas", "scipy", "matplotlib"} & set(sys.modules)))
import ray_jobs.serve.model.annotated
print(sorted({"torch", "scipy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n[]\n"
