"""`clipautt backbone`: what it prints, and that the jobs find, compare and do not send what it registered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clipautt.backbones.loading import BackboneConfig
from ray_jobs import cli
from ray_jobs.platform.configuration import compose, instantiate
from ray_jobs.platform.extraction.extract import ExtractionConfig, _local_files
from ray_jobs.submit.package import sent_files

NAME, TAG = "ViT-B-32-quickgelu", "metaclip_400m"
HASH = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry, and no network: a proxy at which nothing answers."""
    folder = tmp_path / "checkout" / "weights"
    monkeypatch.setenv("CLIPAUTT_WEIGHTS", str(folder))
    monkeypatch.setattr("urllib.request._opener", None)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    return folder


def test_without_a_network_it_says_how_to_bring_the_file(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["backbone", "fetch", NAME]) == 2
    lines = capsys.readouterr().err.splitlines()
    url = f"https://openaipublic.azureedge.net/clip/models/{HASH}/ViT-B-32.pt"
    assert lines == [
        f"clipautt backbone: {url} could not be fetched (Connection refused), through the proxy that https_proxy names",
        "By hand: download this file on a machine with internet and put it into this folder, then run",
        f"`clipautt backbone fetch {NAME}` again, which then needs no network:",
        "  file    ViT-B-32.pt, about 353 MB",
        f"  from    {url}",
        f"  sha256  {HASH}",
        f"  into    {registry}/{NAME}/openai",
    ]
    assert cli.main(["backbone", "show", NAME]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{NAME}: not here", *lines[1:]]
    file = registry / NAME / "openai" / "ViT-B-32.pt"
    file.write_bytes(b"another file")
    assert cli.main(["backbone", "show", NAME]) == 0
    there = [f"{NAME}: {file}, here, not yet verified", f"`clipautt backbone fetch {NAME}` verifies it"]
    assert capsys.readouterr().out.splitlines() == there, "it is not asked for again"
    assert cli.main(["backbone", "fetch", NAME]) == 2
    error = capsys.readouterr().err
    assert "ViT-B-32.pt is not the published file: it has 12 bytes with sha256 " in error
    assert "it was set aside as" in error and error.splitlines()[-1] == lines[-1]
    broken = registry / "ViT-B-32" / "laion2b_s34b_b79k" / "open_clip_model.safetensors"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"hello")
    assert cli.main(["backbone", "fetch", "ViT-B-32"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"If it is broken, remove it (rm {broken}) and run `clipautt backbone fetch ViT-B-32` again"
    )


def test_registered_weights_reach_every_job(registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dataset=folder", "root=data", f"backbone={NAME}"]
    assert instantiate(compose("extract", words).backbone).weights is None
    for tag in ("openai", TAG):
        (registry / NAME / tag).mkdir(parents=True)
        (registry / NAME / tag / "w.pt").write_bytes(b"weights")
    found = instantiate(compose("extract", words).backbone)
    assert found == BackboneConfig(NAME, f"openai:{registry}/{NAME}/openai/w.pt"), "the path that workers open"
    chosen = instantiate(compose("extract", [*words, f"backbone.weights={TAG}"]).backbone)
    assert chosen.weights == f"{TAG}:{registry}/{NAME}/{TAG}/w.pt"
    config = ExtractionConfig(found, str(tmp_path))
    assert _local_files(config) == [f"{registry}/{NAME}/openai/w.pt"], "what the nodes of a cluster are asked for"
    assert cli.main(["backbone", "list"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[2].split()[:9] == [NAME, "7", "B", "sha256", "40d36571…", "here,", "not", "yet", "verified"]
    assert f"{NAME}/{TAG}" in table[8] and table[9] == f"registry: {registry}"


def test_weights_inside_a_checkout_are_not_sent(registry: Path) -> None:
    assert cli.main(["backbone", "fetch", NAME]) == 2
    (registry / NAME / "openai" / "ViT-B-32.pt").write_bytes(b"weights")
    (registry.parent / "code.py").write_text("")
    assert sent_files(registry.parent) == {Path("code.py"): 0}
    shutil.rmtree(registry)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which action? `clipautt backbone list`, `fetch NAME` or `show NAME`"),
        (["fetc", NAME], "unknown action 'fetc'; did you mean 'fetch'?"),
        (["fetch"], "which backbone? `clipautt backbone fetch NAME`, for instance ViT-B-32-quickgelu"),
        (["list", "more"], "list more: allowed: list, list all"),
        (["fetch", NAME, "ViT-B-23"], "open_clip has no model 'ViT-B-23'; similar names are ViT-B-32, "),
    ],
)
def test_words_that_are_not_understood(
    registry: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["backbone", *words]) == 2
    assert message in capsys.readouterr().err
    assert not registry.exists(), "nothing is begun before all words are understood"


def test_everything_that_can_be_fetched(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["backbone", "list", "all"]) == 0
    words = capsys.readouterr().out.split()
    assert {NAME, "ViT-B-32", "ViT-B-32/datacomp_xl_s13b_b90k", "ViT-B-16-SigLIP/webli"} <= set(words)
    assert not {"ViT-B-32/openai", "coca_ViT-B-32/laion2b_s13b_b90k"} & set(words)
