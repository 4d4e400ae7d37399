"""open_clip's models by name: which can be a backbone, where weights come from, and what belongs to them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.pretrained import _PRETRAINED, list_pretrained
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from clipautt.backbones.frozen_clip import Backbone, normalize_frames
from clipautt.backbones.open_clip_models import (
    Architecture,
    build_model,
    check_activation,
    find_architecture,
    load_open_clip,
    load_tokenizer,
    preprocessing_of,
    refusal,
    supported_models,
)
from clipautt.backbones.text_tower import stock_tokenizer, text_tower
from clipautt.backbones.weight_files import OPENAI_ENTRIES
from clipautt.video.preprocessing import Preprocessing, fit_frame
from tests.support.fake_tokenizers import WordTokenizer
from tests.support.fakes import CONTEXT, FEATURE_DIM, IMAGE_SIZE, PHRASES, PREPROCESSING, TEXT_WIDTH, fake_clip_model
from tests.support.weights import openai_state_dict, write_openai_weights, write_training_checkpoint, write_weights

OWN_MODELS = sorted(path.stem for path in (Path(open_clip.__file__).parent / "model_configs").glob("*.json"))
REFUSED = {
    "coca_base",
    "coca_roberta-ViT-B-32",
    "coca_ViT-B-32",
    "coca_ViT-L-14",
    "mt5-base-ViT-B-32",
    "mt5-xl-ViT-H-14",
    "nllb-clip-base",
    "nllb-clip-base-siglip",
    "nllb-clip-large",
    "nllb-clip-large-siglip",
    "roberta-ViT-B-32",
    "xlm-roberta-base-ViT-B-32",
    "xlm-roberta-large-ViT-H-14",
}
TINY = {
    "embed_dim": FEATURE_DIM,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": 1, "width": 8, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": TEXT_WIDTH, "heads": 2, "layers": 2},
}
"""The configuration of `fake_clip_model`."""
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
USUAL = Preprocessing(IMAGE_SIZE, OPENAI_MEAN, OPENAI_STD, "bicubic", "centre")
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub, and no network to wait for."""
    cache = tmp_path / "hub"
    for constants in {huggingface_hub.constants, sys.modules["huggingface_hub.constants"]}:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Models whose configuration is the fake's: `clipautt-tiny`, its QuickGELU sibling, and one without a sibling."""
    folder = tmp_path_factory.mktemp("configs")
    quick = {**TINY, "quick_gelu": True}
    for name, config in {"clipautt-tiny": TINY, "clipautt-tiny-quickgelu": quick, "clipautt-only": TINY}.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{name}.json")


def tag(**changes: Any) -> dict[str, Any]:
    """The facts of a pretrained tag, as open_clip's table has them."""
    usual = {"url": "", "hf_hub": "org/tiny/", "mean": OPENAI_MEAN, "std": OPENAI_STD}
    return {**usual, "interpolation": "bicubic", "resize_mode": "shortest", **changes}


@pytest.fixture
def tags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tags of `clipautt-tiny` that differ in preprocessing and activation."""
    quick = tag(hf_hub="org/quick/", url="https://example.org/tiny.pt", quick_gelu=True)
    squash = tag(mean=HALF, std=HALF, interpolation="bilinear", resize_mode="squash", hf_hub="org/squash/weights.bin")
    own = {"plain": tag(url="https://example.org/tiny-plain-0123.pt"), "squash": squash, "openai": quick}
    monkeypatch.setitem(_PRETRAINED, "clipautt-tiny", own)
    monkeypatch.setitem(_PRETRAINED, "clipautt-tiny-quickgelu", {"openai": quick})
    monkeypatch.setitem(_PRETRAINED, "clipautt-only", {"plain": own["plain"], "squash": squash})


def into_cache(hub: Path, repository: str, files: Mapping[str, bytes]) -> None:
    """Put files where the hub's client keeps what it has downloaded."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


def description(preprocess: Mapping[str, Any] | None = None, **changes: Any) -> bytes:
    """An `open_clip_config.json` of the tiny model."""
    return json.dumps({"model_cfg": {**TINY, **changes}, "preprocess_cfg": dict(preprocess or {})}).encode()


def weights_bytes(tmp_path: Path, suffix: str = ".safetensors") -> bytes:
    return write_weights(tmp_path / f"any{suffix}", fake_clip_model()).read_bytes()


def check_is_fake(backbone: Backbone) -> None:
    """The weights are those of `fake_clip_model()`: the text features are what open_clip computes from them."""
    prompts = backbone.tokenize(PHRASES, context=CONTEXT)
    with torch.no_grad():
        expected = fake_clip_model().eval().encode_text(stock_tokenizer()(list(prompts.texts)))
    torch.testing.assert_close(backbone.encode_prompts(prompts, prompts.context), expected, atol=1e-5, rtol=0)


# Which models


def test_every_model_of_open_clip_is_taken_or_refused() -> None:
    assert len(OWN_MODELS) > 120 and set(OWN_MODELS) <= set(open_clip.list_models())
    assert set(OWN_MODELS) - set(supported_models()) == REFUSED
    wanted = {
        "ViT-B-32-quickgelu",
        "ViT-B-16",
        "ViT-L-14",
        "RN50",
        "ViT-B-16-SigLIP",
        "ViT-B-16-SigLIP2",
        "MobileCLIP-S1",
    }
    assert wanted <= set(supported_models())


def shrunk(name: str) -> dict[str, Any]:
    """A model's configuration with towers that are built at once, its text tower otherwise as it is."""
    config = open_clip.get_model_config(name)
    text = {**config["text_cfg"], "width": 32, "heads": 2, "layers": 1, "vocab_size": 1000}
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] = {**config["multimodal_cfg"], "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 16, "width": 8, "head_width": 8, "layers": 1}
    return {
        **config,
        "embed_dim": 16 if text.get("proj_type") != "none" else 32,
        "vision_cfg": vision,
        "text_cfg": text,
    }


@pytest.mark.parametrize(
    "name", [name for name in OWN_MODELS if "hf_model_name" not in open_clip.get_model_config(name)["text_cfg"]]
)
def test_decision_agrees_with_the_model_itself(name: str) -> None:
    config = shrunk(name)
    custom_text = config.pop("custom_text", False)
    model = (CoCa if "multimodal_cfg" in config else CustomTextCLIP if custom_text else CLIP)(**config)
    if name in REFUSED:
        with pytest.raises(ValueError, match="takes no context vectors"):
            text_tower(model, name=name)
        return
    text = config["text_cfg"]
    tokenizer = WordTokenizer(start=(3,), end=(text.get("eos_id", 999),), padding=text.get("pad_id", 0), vocab_size=999)
    backbone = Backbone(model, name=name, preprocessing=PREPROCESSING, tokenizer=tokenizer)
    prompts = backbone.tokenize(["eyes closed", "smile"], context=CONTEXT)
    with torch.no_grad():
        expected = model.encode_text(tokenizer(prompts.texts, context_length=text.get("context_length", 77)))
    torch.testing.assert_close(backbone.encode_prompts(prompts, prompts.context), expected, atol=1e-5, rtol=0)
    assert (prompts.tokens.shape[1] == 8) == (not text.get("no_causal_mask", False))


def test_unknown_names_and_those_with_a_slash() -> None:
    assert find_architecture("ViT-B/32-quickgelu").name == "ViT-B-32-quickgelu"
    with pytest.raises(ValueError, match=r"'ViT-Q-99' is neither 'embedded' nor an open_clip model"):
        find_architecture("ViT-Q-99")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text_cfg": {"hf_model_name": "org/bert"}}, "it is the Hugging Face model org/bert"),
        ({"text_cfg": {"embed_cls": True}}, "it adds a token of its own to every text"),
        ({"text_cfg": {"pool_type": "none"}}, "its read-out is 'none'; allowed: argmax, eos, last, first"),
        ({"text_cfg": {"pool_type": "first"}}, "it reads out at the first token, which sees no word"),
        ({"text_cfg": {"pool_type": "first", "no_causal_mask": True}}, None),
        ({"multimodal_cfg": {}}, "it belongs to a CoCa model, which adds a token of its own to every text"),
        ({"vision_cfg": {"output_tokens": True}}, "its image tower returns more than one feature"),
    ],
)
def test_reasons(changes: dict[str, Any], reason: str | None) -> None:
    assert refusal({**TINY, **changes}) == reason


# Preprocessing


@pytest.mark.parametrize(
    ("model", "pretrained", "expected"),
    [
        ("ViT-B-32-quickgelu", "openai", Preprocessing(224, OPENAI_MEAN, OPENAI_STD, "bicubic", "centre")),
        ("RN50x4-quickgelu", "openai", Preprocessing(288, OPENAI_MEAN, OPENAI_STD, "bicubic", "centre")),
        ("ViT-L-14", "laion2b_s32b_b82k", Preprocessing(224, HALF, HALF, "bicubic", "centre")),
        ("ViT-B-16-SigLIP", "webli", Preprocessing(224, HALF, HALF, "bicubic", "squash")),
        ("MobileCLIP-S1", "datacompdr", Preprocessing(256, (0.0,) * 3, (1.0,) * 3, "bilinear", "centre")),
        (
            "ViT-L-14-CLIPA-336",
            "datacomp1b",
            Preprocessing(336, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "squash"),
        ),
    ],
)
def test_preprocessing_is_that_of_the_weights(model: str, pretrained: str, expected: Preprocessing) -> None:
    assert preprocessing_of(find_architecture(model), _PRETRAINED[model][pretrained]) == expected


def test_preprocessing_of_every_tag_is_understood() -> None:
    known = [(model, name) for model, name in list_pretrained() if model in supported_models()]
    assert len(known) > 120
    for model, name in known:
        preprocessing_of(find_architecture(model), _PRETRAINED[model][name])


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_frames_become_what_open_clip_makes_of_them(mode: str, interpolation: str) -> None:
    facts = tag(resize_mode=mode, interpolation=interpolation)
    preprocessing = preprocessing_of(find_architecture("ViT-B-32"), facts)
    theirs = image_transform_v2(
        PreprocessCfg(224, mean=OPENAI_MEAN, std=OPENAI_STD, interpolation=interpolation, resize_mode=mode),
        is_train=False,
    )
    for height, width in ((90, 160), (161, 97), (480, 640)):
        frame = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        ours = normalize_frames(torch.from_numpy(fit_frame(frame, preprocessing).copy())[None], preprocessing)[0]
        grey = (ours - theirs(Image.fromarray(frame))).abs() * torch.tensor(OPENAI_STD).view(3, 1, 1) * 255
        assert grey.max() < 1.5


def test_frames_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone\.name 'ViT-B-32' resizes by 'longest'; allowed: shortest, squash"):
        preprocessing_of(find_architecture("ViT-B-32"), tag(resize_mode="longest"))
    wide = Architecture("wide", {**TINY, "vision_cfg": {"image_size": [32, 64]}})
    with pytest.raises(ValueError, match=r"backbone\.name 'wide' takes frames of \[32, 64\] pixels; allowed: square"):
        preprocessing_of(wide, tag())
    square = Architecture("square", {**TINY, "vision_cfg": {"image_size": [32, 32]}})
    one_number = preprocessing_of(square, tag(mean=0.5, std=0.25, interpolation="random"))
    assert one_number == Preprocessing(32, HALF, (0.25,) * 3, "bicubic", "centre")


# Activation


def test_activations_of_all_tags() -> None:
    """Each tag fits either the model that open_clip lists it under, or the one that the message names."""
    for model, name in list_pretrained():
        found = find_architecture(model)
        try:
            check_activation(found, {"quick_gelu": False, **_PRETRAINED[model][name]}, weights=name)
        except ValueError as error:
            if model not in REFUSED:
                assert (
                    str(error).endswith(f"; use backbone.name={model}-quickgelu") and f"{model}-quickgelu" in OWN_MODELS
                )


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "ViT-B-32",
            "openai",
            r"'openai' were trained with QuickGELU; backbone\.name 'ViT-B-32' has GELU; use backbone\.name=ViT-B-32-q",
        ),
        ("RN50", "hf-hub:timm/resnet50_clip.openai", r"QuickGELU; .* has GELU; use backbone\.name=RN50-quickgelu"),
        ("ViT-B-16", "dfn2b", r"QuickGELU; .* has GELU; use backbone\.name=ViT-B-16-quickgelu"),
        (
            "ViT-B-32-quickgelu",
            "laion2b_s34b_b79k",
            r"were trained with GELU; backbone\.name 'ViT-B-32-quickgelu' has QuickGELU; use backbone\.name=ViT-B-32$",
        ),
    ],
)
def test_weights_of_another_activation_are_refused(name: str, weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_open_clip(name, weights)


@pytest.mark.parametrize(("suffix", "archive"), [(".pt", True), (".pt", False), (".safetensors", False)])
def test_openai_s_files_need_quick_gelu(tmp_path: Path, suffix: str, archive: bool) -> None:
    model = build_model(find_architecture("clipautt-tiny-quickgelu"))
    assert isinstance(model, CLIP)
    path = str(write_openai_weights(tmp_path / f"weights{suffix}", model, archive=archive))
    backbone = load_open_clip("clipautt-tiny-quickgelu", path)
    assert backbone.preprocessing == USUAL and backbone.name == "clipautt-tiny-quickgelu"
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.float32}
    message = r"weights\.\w+' were trained with QuickGELU; .* has GELU; use backbone\.name=clipautt-tiny-quickgelu"
    with pytest.raises(ValueError, match=message):
        load_open_clip("clipautt-tiny", path)


@pytest.mark.usefixtures("tags")
def test_tag_does_not_excuse_openai_s_file(tmp_path: Path) -> None:
    path = write_openai_weights(tmp_path / "weights.pt", fake_clip_model())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trained with QuickGELU"):
        load_open_clip("clipautt-tiny", f"plain:{path}")


# Local files


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_local_file(tmp_path: Path, suffix: str) -> None:
    backbone = load_open_clip("clipautt-only", str(write_weights(tmp_path / f"w{suffix}", fake_clip_model())))
    assert backbone.preprocessing == USUAL and backbone.precision == "fp32"
    check_is_fake(backbone)


def test_training_checkpoint_and_precision(tmp_path: Path) -> None:
    path = write_training_checkpoint(tmp_path / "epoch_3.pt", fake_clip_model())
    backbone = load_open_clip("clipautt-only", str(path), precision="bf16")
    assert backbone.precision == "bf16"
    check_is_fake(backbone)


def test_loading_leaves_the_random_numbers_of_the_caller(tmp_path: Path) -> None:
    path = str(write_weights(tmp_path / "weights.pt", fake_clip_model()))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_open_clip("clipautt-only", path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.usefixtures("tags")
def test_file_whose_preprocessing_is_in_doubt_needs_its_tag(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "weights.pt", fake_clip_model())
    message = (
        r"weights\.pt does not state its preprocessing, which differs between the tags of clipautt-only; "
        r"give backbone\.weights=TAG:FILE with .* its tags are plain, squash$"
    )
    with pytest.raises(ValueError, match=message):
        load_open_clip("clipautt-only", str(path))
    assert load_open_clip("clipautt-tiny", f"plain:{path}").preprocessing == USUAL
    squashed = load_open_clip("clipautt-tiny", f"squash:{path}")
    assert squashed.preprocessing == Preprocessing(IMAGE_SIZE, HALF, HALF, "bilinear", "squash")
    assert squashed.fingerprint != load_open_clip("clipautt-tiny", f"plain:{path}").fingerprint
    with pytest.raises(ValueError, match="trained with QuickGELU"):
        load_open_clip("clipautt-tiny", f"openai:{path}")
    check_is_fake(squashed)


@pytest.mark.usefixtures("tags")
def test_file_is_known_by_the_name_it_is_published_under(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "tiny-plain-0123.pt", fake_clip_model())
    assert load_open_clip("clipautt-tiny", str(path)).preprocessing == USUAL
    with pytest.raises(
        ValueError, match=r"were trained with GELU; .* has QuickGELU; use backbone\.name=clipautt-tiny$"
    ):
        load_open_clip("clipautt-tiny-quickgelu", str(path))


@pytest.mark.usefixtures("tags")
def test_name_of_openai_s_file_says_nothing(tmp_path: Path) -> None:
    """Theirs are ViT-B-32.pt and the like, which is how others call their own files too."""
    with pytest.raises(ValueError, match=r"tiny\.pt does not state its activation"):
        load_open_clip("clipautt-tiny", str(write_weights(tmp_path / "tiny.pt", fake_clip_model())))


def test_description_beside_a_file_tells_its_preprocessing_and_activation(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "weights.safetensors", fake_clip_model())
    config = tmp_path / "open_clip_config.json"
    config.write_bytes(description({"mean": HALF, "std": HALF, "resize_mode": "squash"}))
    expected = Preprocessing(IMAGE_SIZE, HALF, HALF, "bicubic", "squash")
    assert load_open_clip("clipautt-tiny", str(path)).preprocessing == expected
    config.write_bytes(description(quick_gelu=True))
    with pytest.raises(ValueError, match="trained with QuickGELU"):
        load_open_clip("clipautt-tiny", str(path))
    config.write_text("{}")
    with pytest.raises(
        ValueError, match=r"open_clip_config\.json does not describe an open_clip model: it needs model_cfg"
    ):
        load_open_clip("clipautt-tiny", str(path))
    config.write_text("{")
    with pytest.raises(ValueError, match=r"open_clip_config\.json is not JSON: "):
        load_open_clip("clipautt-tiny", str(path))


@pytest.mark.usefixtures("tags")
@pytest.mark.parametrize("name", ["clipautt-tiny", "clipautt-tiny-quickgelu"])
@pytest.mark.parametrize("half", [False, True])
def test_file_whose_activation_is_in_doubt_needs_its_tag(tmp_path: Path, name: str, half: bool) -> None:
    """OpenAI's weights without its three numbers, as others save them again, or a renamed file: each fits both."""
    model = fake_clip_model()
    state = openai_state_dict(model) if half else model.state_dict()  # type: ignore[arg-type]
    path = tmp_path / "weights.pt"
    torch.save({key: value for key, value in state.items() if key not in OPENAI_ENTRIES}, path)
    message = (
        r"weights\.pt does not state its activation, the only difference between clipautt-tiny(-quickgelu)? and "
        r"clipautt-tiny(-quickgelu)?; give backbone\.weights=TAG:FILE with a tag that has the file's activation; "
        r"those with QuickGELU are openai; those with GELU are plain, squash; or put the open_clip_config\.json"
    )
    with pytest.raises(ValueError, match=message):
        load_open_clip(name, str(path))
    right, wrong = ("openai", "plain") if name.endswith("-quickgelu") else ("plain", "openai")
    assert load_open_clip(name, f"{right}:{path}").preprocessing == USUAL
    with pytest.raises(ValueError, match="were trained with"):
        load_open_clip(name, f"{wrong}:{path}")
    (tmp_path / "open_clip_config.json").write_bytes(description(quick_gelu=name.endswith("-quickgelu")))
    assert load_open_clip(name, str(path)).preprocessing == USUAL


def test_file_whose_activation_is_in_doubt_where_there_are_no_tags(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "weights.pt", fake_clip_model())
    with pytest.raises(ValueError, match=r"clipautt-tiny-quickgelu; put the open_clip_config\.json of its trainin"):
        load_open_clip("clipautt-tiny", str(path))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"embed_dim": 8}, r"embed_dim is 8 there and 16 here; give"),
        ({"text_cfg": {**TINY["text_cfg"], "heads": 4}}, r"text_cfg\.heads is 4 there and 2 here; give"),
        (
            {"vision_cfg": {**TINY["vision_cfg"], "pool_type": "avg"}},
            r"vision_cfg\.pool_type is 'avg' there and 'tok' here",
        ),
    ],
)
def test_description_of_another_model_beside_a_file_is_refused(
    tmp_path: Path, hub: Path, changes: dict[str, Any], difference: str
) -> None:
    path = write_weights(tmp_path / "weights.safetensors", fake_clip_model())
    (tmp_path / "open_clip_config.json").write_bytes(description(**changes))
    message = rf"open_clip_config\.json describes another model than backbone\.name 'clipautt-tiny': {difference}"
    with pytest.raises(ValueError, match=message):
        load_open_clip("clipautt-tiny", str(path))
    files = {"open_clip_config.json": description(**changes), "open_clip_model.safetensors": path.read_bytes()}
    into_cache(hub, "org/other", files)
    with pytest.raises(ValueError, match=message):
        load_open_clip("clipautt-tiny", "hf-hub:org/other")


def test_description_may_spell_out_defaults(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "weights.safetensors", fake_clip_model())
    vision = {**TINY["vision_cfg"], "image_size": [IMAGE_SIZE, IMAGE_SIZE], "mlp_ratio": 4.0}
    text = {**TINY["text_cfg"], "hf_tokenizer_name": "", "no_causal_mask": False}
    (tmp_path / "open_clip_config.json").write_bytes(description(vision_cfg=vision, text_cfg=text))
    assert load_open_clip("clipautt-tiny", str(path)).preprocessing == USUAL


@pytest.mark.parametrize("changes", [{"text_cfg": None}, {"vision_cfg": [1]}, {"embed_dim": "16"}])
def test_description_with_parts_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "open_clip_config.json").write_bytes(description(**changes))
    with pytest.raises(ValueError, match=r"does not describe an open_clip model: .* and text_cfg \(mappings\)"):
        load_open_clip(f"local-dir:{tmp_path}")


def test_description_with_preprocessing_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": [1]}))
    with pytest.raises(ValueError, match=r"open_clip_config\.json: preprocess_cfg=\[1\] is not a mapping"):
        find_architecture(f"local-dir:{tmp_path}")
    path.write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": None}))
    assert find_architecture(f"local-dir:{tmp_path}").quick_gelu is False


def test_folders_and_repositories_in_the_format_of_transformers_are_told(tmp_path: Path, hub: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    message = (
        r"open_clip_config\.json.*, such as one in the format of transformers, is not an open_clip model: give backbone"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_open_clip(f"local-dir:{tmp_path}")
    into_cache(hub, "org/transformers", {"config.json": b"{}", "model.safetensors": weights_bytes(tmp_path)})
    with pytest.raises(ValueError, match=message):
        load_open_clip("hf-hub:org/transformers")


def test_weights_of_another_model_are_told_in_one_line(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "weights.pt", fake_clip_model())
    with pytest.raises(
        ValueError, match=r"weights\.pt does not fit backbone\.name 'ViT-S-32-alt': \d+ tensors m"
    ) as error:
        load_open_clip("ViT-S-32-alt", str(path))
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    with pytest.raises(
        ValueError, match=r"backbone\.weights: .*weights\.pt could not be read: it is not a complete file"
    ):
        load_open_clip("clipautt-tiny", str(tmp_path / "weights.pt"))


# Local folders and the hub


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "mine.pt"])
def test_local_folder(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "open_clip_config.json").write_bytes(
        description({"mean": HALF, "std": HALF, "interpolation": "bilinear"})
    )
    write_weights(folder / file, fake_clip_model())
    backbone = load_open_clip(f"local-dir:{folder}")
    assert backbone.preprocessing == Preprocessing(IMAGE_SIZE, HALF, HALF, "bilinear", "centre")
    assert backbone.name == f"local-dir:{folder}"
    check_is_fake(backbone)


def test_incomplete_local_folder(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"backbone\.name 'local-dir:.*': there is no file .*open_clip_config\.json"
    ):
        load_open_clip(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_bytes(description())
    with pytest.raises(FileNotFoundError, match=r"needs a file of weights, one of .*open_clip_model.*; found none"):
        load_open_clip(f"local-dir:{tmp_path}")
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"found several: a\.pt, b\.pt"):
        load_open_clip(f"local-dir:{tmp_path}")
    with pytest.raises(
        ValueError, match=r"backbone\.weights 'a\.pt': backbone\.name 'local-dir:.*' comes with its own weights; leave"
    ):
        load_open_clip(f"local-dir:{tmp_path}", "a.pt")


def test_repository_in_the_cache(tmp_path: Path, hub: Path) -> None:
    files = {
        "open_clip_config.json": description({"mean": HALF, "std": HALF}),
        "open_clip_model.safetensors": weights_bytes(tmp_path),
    }
    into_cache(hub, "org/tiny", files)
    backbone = load_open_clip("hf-hub:org/tiny")
    assert backbone.name == "hf-hub:org/tiny"
    assert backbone.preprocessing == Preprocessing(IMAGE_SIZE, HALF, HALF, "bicubic", "centre")
    check_is_fake(backbone)
    named = load_open_clip("clipautt-tiny", "hf-hub:org/tiny")
    assert named.preprocessing == backbone.preprocessing and named.fingerprint == backbone.fingerprint
    direct = load_open_clip("clipautt-tiny", "hf-hub:org/tiny/open_clip_model.safetensors")
    assert direct.fingerprint == backbone.fingerprint


def test_repository_that_holds_weights_only(tmp_path: Path, hub: Path) -> None:
    into_cache(hub, "org/bare", {"open_clip_pytorch_model.bin": weights_bytes(tmp_path, ".bin")})
    backbone = load_open_clip("clipautt-only", "hf-hub:org/bare")
    assert backbone.preprocessing == USUAL
    check_is_fake(backbone)


@pytest.mark.usefixtures("tags")
def test_tag_in_the_cache(tmp_path: Path, hub: Path) -> None:
    into_cache(hub, "org/tiny", {"open_clip_model.safetensors": weights_bytes(tmp_path)})
    into_cache(hub, "org/squash", {"weights.bin": weights_bytes(tmp_path, ".bin")})
    plain, squash = load_open_clip("clipautt-tiny", "plain"), load_open_clip("clipautt-tiny", "squash")
    assert plain.preprocessing == USUAL and squash.preprocessing.crop == "squash"
    check_is_fake(plain)
    assert load_open_clip("clipautt-tiny", "hf-hub:org/squash/weights.bin").fingerprint == squash.fingerprint


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "ViT-B-32-quickgelu",
            "openai",
            r"backbone\.weights 'openai': open_clip_model\.safetensors or open_clip_pytorch_model\.bin of the hub "
            r"repository timm/vit_base_patch32_clip_224\.openai is not in the cache and could not be fetched \(.*\); "
            r"download it from https://huggingface\.co/timm/vit_base_patch32_clip_224\.openai on a machine with interne"
            r"t and give backbone\.weights=openai:FILE, or copy that machine's cache and set HF_HOME to it\. HF_HUB_",
        ),
        (
            "ViTamin-S",
            "datacomp1b",
            r"'datacomp1b': pytorch_model\.bin of the hub repository jienengchen/ViTamin-S is not",
        ),
        (
            "ViT-B-32",
            "hf-hub:org/none",
            r"backbone\.weights 'hf-hub:org/none': .* and give backbone\.weights=FILE, or copy",
        ),
        (
            "hf-hub:org/none",
            None,
            r"backbone\.name 'hf-hub:org/none': open_clip_config\.json of the hub repository org/none is not in the c"
            r".* and give all of its files as backbone\.name=local-dir:FOLDER, or copy",
        ),
    ],
)
def test_what_is_missing_offline_is_told(name: str, weights: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_open_clip(name, weights)


def test_configuration_that_cannot_be_built_is_named() -> None:
    strange = Architecture("strange", {**TINY, "text_cfg": {**TINY["text_cfg"], "flavour": "new"}})
    with pytest.raises(
        ValueError, match=r"backbone\.name 'strange' cannot be built by the installed open_clip: .*flavour"
    ):
        build_model(strange)


# Tokenizers


def test_tokenizers_that_come_with_open_clip() -> None:
    for name in ("ViT-B-32-quickgelu", "PE-Core-B-16"):
        tokenizer = load_tokenizer(find_architecture(name))
        assert tokenizer(["a face"])[0, :4].tolist() == [49406, 320, 1710, 49407]


def test_tokenizer_without_its_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = r"'ViT-B-16-SigLIP': its tokenizer timm/ViT-B-16-SigLIP needs pip install transformers sentencepiece"
    with pytest.raises(ValueError, match=message):
        load_tokenizer(find_architecture("ViT-B-16-SigLIP"))


def test_tokenizer_that_is_missing_offline_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """transformers is no dependency; where it is not installed, a module that raises as it does takes its place."""
    if find_spec("transformers") is None:
        module: Any = ModuleType("transformers")
        module.AutoTokenizer = type("AutoTokenizer", (), {"from_pretrained": staticmethod(_nothing_there)})
        monkeypatch.setitem(sys.modules, "transformers", module)
    message = (
        r"backbone\.name 'ViT-B-16-SigLIP': the tokenizer timm/ViT-B-16-SigLIP is not in the cache of the hub, and "
        r"could not be fetched; on a machine with internet run `hf download timm/ViT-B-16-SigLIP` and copy the cache, w"
    )
    with pytest.raises(ValueError, match=message):
        load_tokenizer(find_architecture("ViT-B-16-SigLIP"))
    config = {**TINY, "text_cfg": {**TINY["text_cfg"], "hf_tokenizer_name": "org/words"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(ValueError, match=rf"the tokenizer org/words is not in {tmp_path}; .* and copy its files there"):
        load_tokenizer(find_architecture(f"local-dir:{tmp_path}"))


def _nothing_there(name: str, **_: Any) -> None:
    raise OSError(f"{name} is not a local folder")


def test_tokenizer_in_a_local_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    words = {
        "<pad>": 0,
        "</s>": 1,
        **{word: 2 + i for i, word in enumerate(["a", "the", "with", "face", "human", "eyes", "closed"])},
    }
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(tmp_path)
    text = {**TINY["text_cfg"], "context_length": 16, "vocab_size": 16, "hf_tokenizer_name": "org/words"}
    config = {**TINY, "text_cfg": {**text, "pool_type": "last", "no_causal_mask": True}, "custom_text": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    found = find_architecture(f"local-dir:{tmp_path}")
    write_weights(tmp_path / "model.safetensors", build_model(found))
    backbone = load_open_clip(f"local-dir:{tmp_path}")
    prompts = backbone.tokenize(["eyes closed"], context=CONTEXT)
    assert (prompts.start, prompts.num_context) == (0, 4) and prompts.tokens.shape == (1, 16)
    with torch.no_grad():
        expected = backbone.model.encode_text(load_tokenizer(found)(list(prompts.texts)))
    torch.testing.assert_close(backbone.encode_prompts(prompts, prompts.context), expected, atol=1e-5, rtol=0)


# Real sizes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "RN50-quickgelu"])
def test_real_model_with_random_weights(tmp_path: Path, name: str) -> None:
    found = find_architecture(name)
    model = build_model(found)
    assert isinstance(model, CLIP)
    backbone = load_open_clip(name, str(write_openai_weights(tmp_path / "weights.pt", model, archive=True)))
    assert backbone.preprocessing == Preprocessing(224, OPENAI_MEAN, OPENAI_STD, "bicubic", "centre")
    assert backbone.feature_dim == {"ViT-B-32-quickgelu": 512, "RN50-quickgelu": 1024}[name]
    prompts = backbone.tokenize(PHRASES, context=CONTEXT)
    assert prompts.context.numel() == len(PHRASES) * 4 * 512 and prompts.tokens.shape[1] < 20
    with torch.no_grad():
        expected = backbone.model.encode_text(stock_tokenizer()(list(prompts.texts)))
        frame = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
        theirs = image_transform_v2(PreprocessCfg(224), is_train=False)
        image = backbone.model.encode_image(theirs(Image.fromarray(frame))[None])
    torch.testing.assert_close(backbone.encode_prompts(prompts, prompts.context), expected, atol=1e-5, rtol=0)
    features = backbone.encode_frames(fit_frame(frame, backbone.preprocessing)[None].copy())
    assert float((features - image).norm() / image.norm()) < 1e-3
