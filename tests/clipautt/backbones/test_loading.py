"""Names and settings to backbones."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipautt.backbones.loading import BackboneConfig, load_backbone


def test_the_default_is_the_embedded_one() -> None:
    backbone = load_backbone(BackboneConfig())
    assert (backbone.name, backbone.precision, backbone.preprocessing.size) == ("embedded", "fp32", 96)
    assert load_backbone(BackboneConfig(precision="bf16")).precision == "bf16"


def test_embedded_takes_another_file_of_its_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights of a small CLIP at .*gone\.safetensors"):
        load_backbone(BackboneConfig(weights=str(tmp_path / "gone.safetensors")))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            BackboneConfig("ViT-B-23"),
            r"backbone\.name 'ViT-B-23' is neither 'embedded' nor an open_clip model; similar names are ViT-B-32",
        ),
        (BackboneConfig("embeded"), r"backbone\.name 'embeded' is neither 'embedded' nor an open_clip model$"),
        (
            BackboneConfig("ViT-B-32-quickgelu"),
            r"backbone\.weights is empty: `clipautt backbone fetch ViT-B-32-quickgelu` gets them where the network "
            r"allows; without one, put ViT-B-32\.pt from https://\S+/ViT-B-32\.pt into "
            r"/dev/null/none/ViT-B-32-quickgelu/openai; or give ViT-B-32-quickgelu a local file or a pretrained tag; ",
        ),
        (
            BackboneConfig("ViT-L-14-336"),
            r"backbone\.weights is empty: give ViT-L-14-336 a local file or a pretrained tag",
        ),
        (BackboneConfig("ViT-S-32"), r"give ViT-S-32 a local file or a pretrained tag; it has no tags"),
        (
            BackboneConfig("ViT-B-32-quickgelu", "opnai"),
            r"backbone\.weights 'opnai' is neither a file nor a pretrained tag of ViT-B-32-quickgelu; its tags are o",
        ),
        (
            BackboneConfig("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k"),
            r"backbone\.name 'xlm-roberta-base-ViT-B-32' has a text tower that takes no context vectors: "
            r"it is the Hugging Face model xlm-roberta-base",
        ),
        (
            BackboneConfig("coca_ViT-B-32"),
            r"'coca_ViT-B-32' has a text tower that takes no context vectors: .* CoCa model",
        ),
    ],
)
def test_configuration_that_names_no_backbone_is_refused(config: BackboneConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(config)


@pytest.mark.parametrize("weights", ["/no/file.pt", "file.safetensors", "openai:/no/file.pt"])
def test_missing_file_is_named(weights: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"backbone\.weights.*: there is no file (/no/)?file\.(pt|safetensors)"):
        load_backbone(BackboneConfig("ViT-B-32-quickgelu", weights))


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pt").write_bytes(b"")
    Path("model").mkdir()
    there = f"{tmp_path}/w.pt"
    assert BackboneConfig(weights="w.pt").weights == there
    assert BackboneConfig("ViT-B-32", "openai:w.pt").weights == f"openai:{there}"
    assert BackboneConfig("ViT-B-32", f"openai:{there}").weights == f"openai:{there}"
    assert BackboneConfig("local-dir:model").name == f"local-dir:{tmp_path}/model"
    for name, weights in (("ViT-B/32", "openai"), ("hf-hub:org/repo", None), ("ViT-B-32", "hf-hub:org/repo/w.pt")):
        config = BackboneConfig(name, weights)
        assert (config.name, config.weights) == (name, weights)


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w.pt").write_bytes(b"")
    assert BackboneConfig(weights="~/w.pt").weights == f"{tmp_path}/w.pt"
    assert BackboneConfig("ViT-B-32", "openai:~/w.pt").weights == f"openai:{tmp_path}/w.pt"
    assert BackboneConfig("local-dir:~/model").name == f"local-dir:{tmp_path}/model"
    with pytest.raises(FileNotFoundError, match=rf"there is no file {tmp_path}/gone\.pt"):
        load_backbone(BackboneConfig("ViT-B-32-quickgelu", "openai:~/gone.pt"))
