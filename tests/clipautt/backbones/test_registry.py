"""Where the registry is, and what an address says about its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipautt.backbones.registry import default_tag, published_hash, registered, weights_folder


def test_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    for given, folder in {"~/w": "/home/anna/w", "w w": f"{tmp_path}/w w", "": "/var/cache/clipautt/weights"}.items():
        monkeypatch.setenv("CLIPAUTT_WEIGHTS", given)
        assert weights_folder() == Path(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert weights_folder() == Path("/home/anna/.cache/clipautt/weights")
    monkeypatch.setenv("CLIPAUTT_WEIGHTS", "s3://bucket/weights")
    with pytest.raises(ValueError, match=r"CLIPAUTT_WEIGHTS=s3://bucket/weights: URIs are not read yet"):
        weights_folder()
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIPAUTT_WEIGHTS", "file")
    with pytest.raises(ValueError, match=rf"CLIPAUTT_WEIGHTS={tmp_path}/file is a file; name a folder for weights"):
        weights_folder()
    monkeypatch.delenv("CLIPAUTT_WEIGHTS")
    monkeypatch.setenv("HOME", "~")  # what is left of it where a container's user has no entry
    assert registered("ViT-B-32", "openai") is None
    with pytest.raises(ValueError, match=r"this user has no home folder: set CLIPAUTT_WEIGHTS to a folder for weights"):
        weights_folder()


@pytest.mark.parametrize(
    ("address", "found"),
    [
        (f"https://example.org/models/{'0a' * 32}/ViT-B-32.pt", "0a" * 32),
        ("https://example.org/v0.2-weights/vit_b_32-quickgelu-laion400m_e31-d867053b.pt", "d867053b"),
        ("https://example.org/metaclip/b32_fullcc2.5b.pt", ""),
        ("", ""),
    ],
)
def test_published_hash(address: str, found: str) -> None:
    assert published_hash(address) == found


def test_default_tag_depends_on_the_name_alone() -> None:
    names = ("ViT-B-32-quickgelu", "ViT-L-14-336-quickgelu", "ViT-B/32", "ViT-L-14")
    assert list(map(default_tag, names)) == ["openai", "openai", "laion2b_s34b_b79k", "laion2b_s32b_b82k"]
