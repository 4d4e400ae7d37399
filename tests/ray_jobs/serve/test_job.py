"""The command: settings, which models are served, the Serve YAML, and mistakes in one line."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydantic import ValidationError

from clipautt.adaptation.source import Source
from clipautt.files import locked
from clipautt.model.checkpoint import save_checkpoint
from clipautt.settings import one_line
from ray_jobs.cli import main
from ray_jobs.platform.configuration import complete, instantiate
from ray_jobs.serve.cluster_command import last_line
from ray_jobs.serve.served import missing_cores, served_models
from ray_jobs.serve.settings import ServeConfig
from ray_jobs.serve.video_check import Limits
from tests.support.fakes import write_video
from tests.support.recordings import face_frames
from tests.support.server_process import free_port
from tests.support.serving import save_model, save_prompts, small_source

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def source() -> Source:
    return small_source()


@pytest.fixture(scope="module")
def model(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(source, tmp_path_factory.mktemp("model"))


def config_of(*words: str) -> ServeConfig:
    """The settings as the command line gives them."""
    config: ServeConfig = instantiate(complete("serve", words))
    return config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 0}, "port=0: should be greater than or equal to 1"),
        ({"port": 65536}, "port=65536: should be less than or equal to 65535"),
        ({"encoders": 0}, "encoders=0: should be greater than 0"),
        ({"max_seconds": 0}, "max_seconds=0: should be greater than 0"),
        ({"waiting": -1}, "waiting=-1: should be greater than or equal to 0"),
        ({"max_decoders": 1, "decoders": 2}, "max_decoders=1: should be decoders=2 or more"),
        ({"tls_key": Path("key.pem")}, "tls_certificate and tls_key belong together: give both, or none"),
        ({"name": "../clinic"}, "name='../clinic': allowed: letters, digits and . _ -, at most 64"),
        ({"public_url": ""}, "public_url='': should be the address of a server, such as https://clinic.example"),
        ({"public_url": "javascript:alert(1)"}, "public_url='javascript:alert(1)': should be the address of a server"),
        (
            {"public_url": "https://me:secret@clinic.example"},
            "public_url='https://me:secret@clinic.example': should be",
        ),
        (
            {"public_url": "https://clinic.example?a=b"},
            "public_url='https://clinic.example?a=b': should be the address",
        ),
        ({"max_upload_mb": 1e-9}, "max_upload_mb=1e-09: should be greater than or equal to 0.01"),
        ({"models": {}}, "models={}: give at least one, as in models={pain: FOLDER}; or leave it out"),
        (
            {"models": {"pain": "a"}, "checkpoint": Path("b")},
            "models=… and checkpoint=…: give one of them; models={NAME: FOLDER} names a model",
        ),
    ],
)
def test_a_wrong_setting_is_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ServeConfig(**settings)
    assert one_line(caught.value).startswith(message)


def test_the_settings_of_the_project() -> None:
    config = config_of()
    assert config.limits == Limits(max_bytes=50_000_000, max_seconds=60, max_pixels=3840 * 2160, max_frames=4000)
    assert (config.url, config.folder) == ("http://127.0.0.1:8000", Path("runs/serve/server"))
    assert not config.keys_needed
    assert (config.adapt.method.name, config.adapt.subject_baseline) == ("clip_autt", "median")
    assert (config.per_video.protocol, config.per_video.method.adapts) == ("per_video", True)
    other = config_of("models={pain: a/b, stress: c}", "host=::", "max_upload_mb=0.5", "origins=[https://a.example]")
    assert other.models == {"pain": "a/b", "stress": "c"}
    assert (other.url, other.limits.max_bytes, other.keys_needed) == ("http://[::]:8000", 500_000, True)


def test_the_newest_checkpoint_is_served_with_its_own_prompts(
    source: Source, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^no checkpoint below runs; `clipautt demo` or `clipautt train`"):
        served_models(config_of())
    shutil.copytree(model, tmp_path / "runs/demo")
    other = small_source(seed=1)
    save_prompts(tmp_path / "runs/other/prompts", other.checkpoint, other, "somebody")
    (one,) = served_models(config_of())
    assert (one.name, one.checkpoint) == ("pain", str(tmp_path / "runs/demo/checkpoint"))
    assert one.prompts == str(tmp_path / "runs/demo/prompts"), "the newer prompts are of another checkpoint"
    shutil.copytree(model / "checkpoint", tmp_path / "damaged")
    (tmp_path / "damaged/checkpoint.json").write_text("{")
    with pytest.raises(ValueError, match=r"damaged: checkpoint\.json is damaged \(Expecting property name"):
        served_models(config_of("checkpoint=damaged"))
    with pytest.raises(FileNotFoundError, match=r"^prompts=nowhere: no such folder; `clipautt adapt` or"):
        served_models(config_of("prompts=nowhere"))


def test_several_models_have_names_and_share_what_they_can(source: Source, model: Path, tmp_path: Path) -> None:
    save_checkpoint(small_source(seed=1).checkpoint, tmp_path / "stress")
    models = f"models={{pain: {model / 'checkpoint'}, stress: {tmp_path / 'stress'}}}"
    pain, stress = served_models(config_of(models, f"runs={tmp_path}"))
    assert (pain.name, stress.name, pain.pixels) == ("pain", "stress", stress.pixels)
    assert (pain.prompts, stress.prompts) == (None, None)
    given = served_models(config_of(models, f"prompts={model / 'prompts'}"))
    assert [one.prompts for one in given] == [str(model / "prompts"), None], "prompts of another checkpoint"
    for name in ("a b", "../x", "", "x" * 65):
        with pytest.raises(ValueError, match="is no name of a model; allowed: letters, digits and"):
            served_models(ServeConfig(models={name: str(model / "checkpoint")}))


def test_too_few_cores_are_named() -> None:
    config = ServeConfig(decoders=3, encoders=2)
    assert missing_cores(config, 8) is None
    said = "decoders=3 and encoders=2 need 5 cores, and the cluster has 4; give fewer, or on one "
    said += "machine cluster.num_cpus=5, if they may share cores"
    assert missing_cores(config, 4) == said


def test_the_serve_yaml(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "serve it.yaml"
    words = [
        "serve",
        "build",
        f"checkpoint={model / 'checkpoint'}",
        f"runs={tmp_path}",
        f"out={out}",
        "decoders=4",
        "cluster.num_gpus_per_actor=0.5",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    note = "note: it will answer programs on its own node only; host=0.0.0.0 lets others ask, with an API key"
    assert said == [f"written: {out}", note, f"next: clipautt serve deploy '{out}'"]
    read = yaml.safe_load(out.read_text())
    (application,) = read["applications"]
    assert (read["proxy_location"], application["name"], application["route_prefix"]) == (
        "Disabled",
        "clipautt-server",
        None,
    )
    assert application["import_path"] == "ray_jobs.serve.application:build"
    settings = application["args"]["settings"]
    assert (settings["models"], settings["decoders"]) == ({"pain": str(model / "checkpoint")}, 4)
    assert settings["runs"] == str(tmp_path)
    config = instantiate(settings)
    assert (config.decoders, config.cluster.num_gpus_per_actor, config.cluster.address) == (4, 0.5, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["biuld"], "action='biuld': should be one of build, deploy, keys"),
        (["build", "more"], "unknown word 'more'; `clipautt serve --help` shows examples"),
        (["deploy"], "serve deploy: expected the file of `clipautt serve build`, as in `serve deploy serve.yaml`"),
        (["deploy", "no.yaml"], "serve deploy no.yaml: no such file; `clipautt serve build out=no.yaml` writes one"),
        (["scope=admin"], "scope=… and days=… belong to `clipautt serve keys add NAME`"),
        (
            ["host=0.0.0.0", "name=ward"],
            "host=0.0.0.0 is not loopback: an API key is needed, and there is none; make one first: clipautt serve "
            "keys add NAME name=ward",
        ),
        (["prompts=nowhere"], "prompts=nowhere: no such folder; `clipautt adapt` or `clipautt personalize` makes one"),
        (
            ["tls_certificate=a.pem", "tls_key=b.pem"],
            "tls_certificate=a.pem: cannot be read (No such file or directory)",
        ),
    ],
)
def test_mistakes_of_the_command_are_one_line(
    words: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before Ray starts."""
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *words, f"checkpoint={model}/checkpoint", "cluster=local"]) == 2
    assert capsys.readouterr() == ("", f"clipautt serve: {message}\n")


def test_a_server_has_its_folder_for_itself(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before Ray starts: another one would remove what this one is writing."""
    monkeypatch.chdir(tmp_path)
    words = ["serve", f"checkpoint={model}/checkpoint", f"port={free_port()}", "cluster=local"]
    with locked(tmp_path / "runs/serve/server/server"):
        assert main(words) == 2
    said = "clipautt serve: runs/serve/server: its server runs already; stop that, or give this one name=…\n"
    assert capsys.readouterr().err == said
    (tmp_path / "file").touch()
    assert main([*words, "runs=file"]) == 2
    said = "clipautt serve: file/serve/server cannot be written (Not a directory); choose another with runs=…\n"
    assert capsys.readouterr().err == said


def test_the_reason_of_a_worker_is_its_last_line() -> None:
    assert last_line("Failed\nTraceback:\n  File x\nValueError: too small\n\n") == "ValueError: too small"


@pytest.mark.slow
@pytest.mark.parametrize("stopping", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_signal(model: Path, tmp_path: Path, stopping: signal.Signals) -> None:
    port = free_port()
    video = write_video(tmp_path / "face.mp4", face_frames())
    words = [f"checkpoint={model}/checkpoint", f"prompts={model}/prompts", f"port={port}"]
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
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "something still listens"
