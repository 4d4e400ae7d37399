"""Files of weights: every format gives the model's own weights back, and nothing else gets through."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from clipautt.backbones.weight_files import load_weights, read_weights
from tests.support.fakes import fake_clip_model
from tests.support.weights import (
    openai_state_dict,
    write_archive,
    write_openai_weights,
    write_training_checkpoint,
    write_weights,
)


def loaded(path: Path, *, custom_text: bool = False) -> dict[str, torch.Tensor]:
    """What a model with other weights holds after the file was read into it."""
    model = fake_clip_model(seed=1, custom_text=custom_text)
    load_weights(model, read_weights(path), name="fake")
    return dict(model.state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_state_dict(tmp_path: Path, suffix: str) -> None:
    model = fake_clip_model()
    path = write_weights(tmp_path / f"weights{suffix}", model)
    assert not read_weights(path).openai
    for name, value in loaded(path).items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("parallel", [True, False])
def test_training_checkpoint(tmp_path: Path, parallel: bool) -> None:
    model = fake_clip_model()
    path = write_training_checkpoint(tmp_path / "epoch_3.pt", model, parallel=parallel)
    assert not read_weights(path).openai
    for name, value in loaded(path).items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize(("suffix", "archive"), [(".pt", True), (".pt", False), (".safetensors", False)])
def test_openai_s_format_is_recognized_and_becomes_float32(tmp_path: Path, suffix: str, archive: bool) -> None:
    model = fake_clip_model()
    path = write_openai_weights(tmp_path / f"weights{suffix}", model, archive=archive)
    file = read_weights(path)
    assert file.openai and file.state["visual.conv1.weight"].dtype == torch.float16
    for name, value in loaded(path).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, model.state_dict()[name], atol=2e-3, rtol=1e-3)


def test_archive_is_openai_s_format_whatever_it_holds(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "weights.pt", fake_clip_model().state_dict())
    assert read_weights(path).openai
    assert torch.equal(loaded(path)["text_projection"], fake_clip_model().state_dict()["text_projection"])


def test_weights_of_clip_fit_custom_text_clip(tmp_path: Path) -> None:
    model = fake_clip_model()
    state = loaded(write_weights(tmp_path / "weights.pt", model), custom_text=True)
    assert torch.equal(state["text.text_projection"], model.state_dict()["text_projection"])
    assert torch.equal(state["text.transformer.resblocks.0.ln_1.weight"], torch.ones(32))


def test_logit_scale_of_another_rank_and_a_bias_too_many(tmp_path: Path) -> None:
    model = fake_clip_model()
    state = {**model.state_dict(), "logit_scale": torch.tensor([2.0]), "logit_bias": torch.tensor(-10.0)}
    save_file(state, tmp_path / "weights.safetensors")
    assert loaded(tmp_path / "weights.safetensors")["logit_scale"].tolist() == 2.0
    model.logit_bias = nn.Parameter(torch.tensor(-3.0))
    load_weights(model, read_weights(tmp_path / "weights.safetensors"), name="fake")
    assert model.logit_bias.item() == -10.0
    load_weights(model, read_weights(write_weights(tmp_path / "no_bias.pt", fake_clip_model())), name="fake")
    assert model.logit_bias.item() == 0.0


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", ["empty", "text", "truncated"])
def test_broken_file_is_named_in_one_line(tmp_path: Path, suffix: str, content: str) -> None:
    path = tmp_path / f"weights{suffix}"
    whole = write_weights(path, fake_clip_model()).read_bytes()
    path.write_bytes({"empty": b"", "text": b"no weights", "truncated": whole[: len(whole) // 2]}[content])
    with pytest.raises(ValueError, match=rf"backbone\.weights: .*weights{suffix} could not be read: ") as raised:
        read_weights(path)
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)


class _Harm:
    """What a pickle can do: this one would make a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def test_pickled_objects_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "more": _Harm()}, tmp_path / "harm.pt")
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(_Harm(), protocol=2))
    for name in ("harm.pt", "bare.bin"):
        with pytest.raises(
            ValueError, match=rf"{name} holds posix\.mkdir beside its tensors, and objects are not unpickled"
        ):
            read_weights(tmp_path / name)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [torch.zeros(3), {}, {"a": torch.zeros(3), "b": 1}, {"state_dict": {}}, [1]])
def test_tensors_without_names_are_no_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt holds no state dict \(tensors by name\)"):
        read_weights(tmp_path / "weights.pt")


def test_missing_file_and_foreign_suffix(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"backbone\.weights: there is no file .*gone\.pt"):
        read_weights(tmp_path / "gone.pt")
    (tmp_path / "weights.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"has the suffix '\.npz'; allowed: \.safetensors, \.pt, \.pth, \.bin, \.ckpt"):
        read_weights(tmp_path / "weights.npz")


def test_another_architecture_is_told_in_one_line(tmp_path: Path) -> None:
    state = openai_state_dict(fake_clip_model())
    del state["ln_final.weight"]
    state["visual.extra"] = torch.zeros(2)
    state["positional_embedding"] = torch.zeros(60, 32)
    torch.save(state, tmp_path / "weights.pt")
    message = (
        r"weights\.pt does not fit backbone\.name 'ViT-Z': 1 tensors missing \(first: ln_final\.weight\), "
        r"1 tensors unexpected \(first: visual\.extra\), "
        r"1 tensors of another shape \(first: positional_embedding \[60, 32\] for \[77, 32\]\)$"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(fake_clip_model(), read_weights(tmp_path / "weights.pt"), name="ViT-Z")
