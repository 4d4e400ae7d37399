"""Which settings name files and folders, and what is refused about them, for the project's own jobs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ray_jobs import cli
from ray_jobs.platform import configuration
from ray_jobs.platform.jobs import find_job, jobs
from ray_jobs.platform.places import places, refuse_relative, refuse_uris

GIVEN = {
    "predict": ["videos=[v.mp4,s]", "checkpoint=c", "prompts=p", "out=t.csv", "overlay=o.mp4", "figure=f.png"],
    "personalize": ["subject=s", "videos=[v.mp4]", "checkpoint=c"],
    "faces": ["video=v.mp4", "out=o", "faces=yunet", "faces.model=m.onnx"],
    "manifest": ["dataset=folder", "root=r"],
    "extract": ["dataset=bah", "root=r"],
    "train": ["manifest=m.csv", "backbone=ViT-B-32-quickgelu", "backbone.weights=openai:w.pt"],
    "adapt": ["manifest=m.csv"],
    "sweep": ["manifest=m.csv"],
    "import-checkpoint": ["weights=w.pth", "prompts=p.txt", "backbone.name=local-dir:b"],
    "report": ["run=[a,b]", "table=[c.csv,d.csv]"],
    "serve": ["checkpoint=c", "prompts=p"],
    "store": ["manifests=[m.csv]"],
    "validate-aus": ["videos=[v]", "coding=c", "out=o", "checkpoint=c"],
}
FOUND = {
    "demo": {"runs"},
    "predict": {"videos", "checkpoint", "prompts", "out", "store", "overlay", "figure"},
    "personalize": {"videos", "checkpoint", "prompts"},
    "faces": {"video", "out", "faces.model"},
    "manifest": {"root", "manifest"},
    "synth": {"out"},
    "pretrain": {"out"},
    "extract": {"root", "manifest", "store", "runs"},
    "store": {"manifests", "store", "runs"},
    "train": {"manifest", "store", "runs", "backbone.weights"},
    "adapt": {"manifest", "store", "runs", "checkpoint"},
    "import-checkpoint": {"weights", "prompts", "out", "backbone.name"},
    "report": {"run", "table"},
    "sweep": {"manifest", "store", "runs"},
    "serve": {"checkpoint", "prompts"},
    "validate-aus": {"videos", "coding", "out", "checkpoint", "store"},
}


@pytest.mark.parametrize("name", sorted(FOUND))
def test_every_file_and_folder_of_a_job_is_found(name: str) -> None:
    found = {place.key for place in places(find_job(name), GIVEN.get(name, ())) if any(place.paths)}
    assert found == FOUND[name], "the explanation of such a setting begins with path, folder, file or where"


def test_the_list_covers_every_job() -> None:
    assert {job.name for job in jobs().values() if job.module in configuration.configured_jobs()} == set(FOUND)


@pytest.mark.parametrize("name", sorted(FOUND))
def test_every_relative_path_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        refuse_relative(find_job(name), GIVEN.get(name, ()))
    named = str(caught.value).partition(": a relative path")[0]
    assert {part.partition("=")[0] for part in named.split(", ") if "=" in part} == FOUND[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("demo", ["out=/shared/demo"]),  # `runs` is not used then
        ("report", ["run=[/a,/b]"]),
        ("train", ["manifest=/m", "store=/s", "runs=/r", "backbone=ViT-B-32", "backbone.weights=laion2b_s34b_b79k"]),
        ("train", ["manifest=/m", "store=/s", "runs=/r", "backbone=hf-hub:timm/ViT-B-16-SigLIP"]),
        ("extract", ["dataset=biovid", "root=/d", "manifest=/m", "store=/s", "runs=/r", "dataset.within=videos"]),
    ],
)
def test_absolute_paths_and_names_are_accepted(name: str, words: list[str]) -> None:
    refuse_relative(find_job(name), words)
    refuse_uris(find_job(name), words)


def test_a_path_that_is_here_is_advised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.csv").touch()
    with pytest.raises(ValueError, match=rf"for instance manifest={tmp_path}/m\.csv$"):
        refuse_relative(find_job("adapt"), ["manifest=m.csv", "store=/s", "runs=/r", "checkpoint=/c"])


def test_the_advice_is_a_word_that_is_read_as_that_path(tmp_path: Path) -> None:
    given = ["manifest=/m", "store='my, own'", "checkpoint=/c"]
    with pytest.raises(ValueError, match="for instance ") as caught:
        refuse_relative(find_job("adapt"), given)
    advised = shlex.split(str(caught.value).rpartition("for instance ")[2])
    refuse_relative(find_job("adapt"), [*given, *advised])
    assert configuration.compose("adapt", [*given, *advised]).store == "/shared/my, own"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["store", "store=s3://b/f"], "store=s3://b/f"),
        (["extract", "manifest=gs://b/m.csv"], "manifest=gs://b/m.csv"),
        (["extract", "dataset=biovid", "root=file:///data"], "root=file:///data"),
        (["extract", "dataset=biovid", "root=/d", "dataset.root=hdfs://n/d"], "dataset.root=hdfs://n/d"),
        (["adapt", "manifest=/m", "checkpoint=s3://b/c"], "checkpoint=s3://b/c"),
        (["report", "run=[/a,s3://b/r]"], "run=s3://b/r"),
        (["serve", "prompts=s3://b/p"], "prompts=s3://b/p"),
        (["demo", "out=s3://b/demo"], "out=s3://b/demo"),
        (["train", "manifest=/m", "backbone.weights=https://x.org/w.pt"], "backbone.weights=https://x.org/w.pt"),
    ],
)
def test_a_uri_is_refused_wherever_a_path_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clipautt {words[0]}: {said}: URIs are not read yet; give a local path")
    assert list(tmp_path.iterdir()) == []
