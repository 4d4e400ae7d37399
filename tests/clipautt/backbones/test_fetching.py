"""Weights come into the registry whole and verified, or not at all: by a real server on this machine, and by hand."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import socket
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
from open_clip.model import CLIP
from open_clip.pretrained import _PRETRAINED

from clipautt.backbones import fetching
from clipautt.backbones.fetching import (
    FetchError,
    about_bytes,
    every_publication,
    fetch,
    find_publication,
    recommended,
    registered_publications,
)
from clipautt.backbones.loading import BackboneConfig, load_backbone, recorded_backbone
from clipautt.backbones.open_clip_models import build_model, find_architecture, load_open_clip
from clipautt.backbones.publications import publication
from clipautt.backbones.registry import read_record
from tests.support.fakes import FEATURE_DIM, IMAGE_SIZE, TEXT_WIDTH
from tests.support.web import Page, Site, serving
from tests.support.weights import write_openai_weights, write_weights

NAME = "clipautt-small-quickgelu"
CONFIG = {
    "embed_dim": FEATURE_DIM,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": 1, "width": 8, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": TEXT_WIDTH, "heads": 2, "layers": 1},
    "quick_gelu": True,
}
FACTS = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
COMMIT = "0" * 40


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("configs") / f"{NAME}.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, small: None) -> Path:
    """Small weights as OpenAI publishes its own."""
    model = build_model(find_architecture(NAME))
    assert isinstance(model, CLIP)
    return write_openai_weights(tmp_path_factory.mktemp("weights") / "small.pt", model)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path) -> Iterator[Site]:
    """An empty registry, and a server where tags of the small model are published but nothing is served yet."""
    monkeypatch.setenv("CLIPAUTT_WEIGHTS", str(tmp_path / "registry"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)
    with serving() as running:
        folder = f"{running.url}/openaipublic/{sha256(weights)}"
        tags: dict[str, dict[str, Any]] = {
            "openai": {"url": f"{folder}/small.pt", "hf_hub": "org/unused/"},
            "bare": {"url": f"{running.url}/bare.pt", "hf_hub": ""},
            "short": {"url": f"{running.url}/mlfoundations/small-{sha256(weights)[:8]}.pt", "hf_hub": ""},
            "hub": {"url": "", "hf_hub": "org/small/"},
        }
        monkeypatch.setitem(_PRETRAINED, NAME, {t: {**FACTS, "quick_gelu": True, **f} for t, f in tags.items()})
        yield running


@pytest.fixture
def hub(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    """The hub's client, with an empty cache, asks the server."""
    for constants in {huggingface_hub.constants, sys.modules["huggingface_hub.constants"]}:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{site.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
    return site


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def serve(site: Site, tag: str, content: bytes, **page: Any) -> str:
    """Serve a tag's file; returns its path on the server."""
    path = str(_PRETRAINED[NAME][tag]["url"]).removeprefix(site.url)
    site.pages[path] = Page(content, **page)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Downloads


def test_fetched_weights_are_found_by_name(site: Site, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = serve(site, "openai", weights.read_bytes())
    published = find_publication(NAME)
    done = fetch(published)
    assert done.path == Path(os.environ["CLIPAUTT_WEIGHTS"], NAME, "openai", "small.pt")
    assert files(done.path.parent) == ["small.pt", "weights.json"]
    assert (done.record.sha256, done.record.published) == (sha256(weights), sha256(weights))
    assert done.record.source == site.url + path and done.notes == ()
    config = BackboneConfig(NAME)
    assert config.weights == f"openai:{done.path}" and config == BackboneConfig(NAME, "openai")
    backbone = load_backbone(config)
    assert backbone.fingerprint == load_open_clip(NAME, f"openai:{weights}").fingerprint
    assert fetch(published).record == done.record and site.asked == [f"GET {path}"], "it is not downloaded again"
    assert registered_publications() == [published]
    assert (Path(os.environ["CLIPAUTT_WEIGHTS"]) / ".gitignore").read_text() == "*\n"
    monkeypatch.setenv("CLIPAUTT_WEIGHTS", str(done.path.parents[3] / "elsewhere"))
    assert BackboneConfig(NAME).weights is None
    load_backbone(config)  # a worker without the variable


def test_checkpoint_finds_its_weights_on_another_machine(site: Site, weights: Path) -> None:
    facts = {"name": NAME, "weights": "openai:/elsewhere/small.pt", "precision": "fp32"}
    assert recorded_backbone(facts).weights == facts["weights"]
    with pytest.raises(
        FileNotFoundError, match=rf"no file /elsewhere/small\.pt; `clipautt backbone fetch {NAME}` gets"
    ):
        load_backbone(recorded_backbone(facts))
    serve(site, "openai", weights.read_bytes())
    done = fetch(find_publication(NAME))
    assert recorded_backbone(facts).weights == f"openai:{done.path}"
    assert recorded_backbone({**facts, "weights": f"openai:{weights}"}).weights == f"openai:{weights}"
    assert BackboneConfig(**facts).weights == facts["weights"], "a path that the user gives is never replaced"


@pytest.mark.parametrize(
    ("content", "page", "reason"),
    [
        (
            b"another file",
            {},
            r"gave another file than the published one, or broke off, .* it has 12 bytes with sha256 ",
        ),
        (b"half of it", {"length": 1000}, r"gave another file .* it has 10 bytes with sha256 [0-9a-f]{64}, and the pu"),
        (b"", {}, r"it has 0 bytes with sha256 e3b0c442"),
        (b"<html>", {"length": -1}, r"could not be fetched \(the answer has no length, as that of a proxy"),
        (b"", {"status": 404}, r"the server answers 404 \(Not Found\) to http://127\.0\.0\.1:\d+/openaipublic/"),
        (b"", {"status": 403}, r"the server answers 403 \(Forbidden\) to "),
        (b"", {"status": 302, "headers": {"Location": "http://127.0.0.1:9/x"}}, r"could not be fetched \(Connection r"),
    ],
)
def test_what_goes_wrong_leaves_nothing_and_says_how_else(
    site: Site, content: bytes, page: dict[str, Any], reason: str, weights: Path
) -> None:
    serve(site, "openai", content, **page)
    published = find_publication(NAME)
    with pytest.raises(FetchError, match=reason) as error:
        fetch(published)
    assert files(published.folder) == [] and BackboneConfig(NAME).weights is None
    first, *rest = str(error.value).splitlines()
    assert published.url in first
    assert rest == [
        "By hand: download this file on a machine with internet and put it into this folder, then run",
        f"`clipautt backbone fetch {NAME}` again, which then needs no network:",
        f"  file    small.pt, about {about_bytes(published) / 1e6:.0f} MB",  # type: ignore[operator]
        f"  from    {published.url}",
        f"  sha256  {sha256(weights)}",
        f"  into    {published.folder}",
    ]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "127.0.0.1:9"])
def test_no_network(site: Site, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    url = f"http://{host}/openaipublic/{'a' * 64}/small.pt"
    monkeypatch.setitem(_PRETRAINED[NAME]["openai"], "url", url)
    reason = "its name could not be resolved: no network, or no DNS" if "invalid" in host else "Connection refused"
    with pytest.raises(FetchError, match=rf"^{url} could not be fetched \({reason}\)\nBy hand: "):
        fetch(find_publication(NAME))
    monkeypatch.delenv("no_proxy")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it has read the environment
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    with pytest.raises(FetchError, match=r"\(Connection refused\), through the proxy that http_proxy names\n") as error:
        fetch(find_publication(NAME))
    assert "secret" not in str(error.value)


def test_silent_server_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipautt.backbones.fetching._SILENT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/openaipublic/{'a' * 64}/small.pt"
        monkeypatch.setitem(_PRETRAINED[NAME]["openai"], "url", url)
        with pytest.raises(FetchError, match=r"could not be fetched \(no answer within 0\.2 s\)"):
            fetch(find_publication(NAME))


def test_disk_that_is_full(site: Site, weights: Path) -> None:
    """A limit on the size of files stops writing in the middle, as a full disk does."""
    serve(site, "openai", weights.read_bytes())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    published = find_publication(NAME)
    try:
        with pytest.raises(
            FetchError, match=r"openai could not take the file \(File too large\); CLIPAUTT_WEIGHTS=FOLDE"
        ):
            fetch(published)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(published.folder) == []
    assert fetch(published).record.sha256 == sha256(weights)


def test_folder_that_cannot_be_made(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("CLIPAUTT_WEIGHTS", str(tmp_path / "file" / "weights"))
    with pytest.raises(
        ValueError, match=r"file/.*/openai cannot be written \(Not a directory\); CLIPAUTT_WEIGHTS=FOLDER"
    ):
        fetch(find_publication(NAME))
    assert site.asked == []


def test_two_at_once(site: Site, weights: Path) -> None:
    serve(site, "openai", weights.read_bytes())
    published = find_publication(NAME)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(fetch, [published, published])
    assert socket.getdefaulttimeout() is None, "each of them sets it for its download"
    assert first.record.sha256 == second.record.sha256 == sha256(weights)
    assert files(published.folder) == ["small.pt", "weights.json"]


def test_timeouts_of_downloads_that_overlap_are_taken_away_with_the_last_one() -> None:
    first, second = ExitStack(), ExitStack()
    for download in (first, second):
        download.enter_context(fetching._impatient_sockets())
    first.close()
    assert socket.getdefaulttimeout() == fetching._SILENT_SECONDS
    second.close()
    assert socket.getdefaulttimeout() is None


def test_published_digits_and_no_published_hash(site: Site, weights: Path) -> None:
    serve(site, "short", b"another")
    with pytest.raises(FetchError, match=rf"and the published one begins with {sha256(weights)[:8]}"):
        fetch(find_publication(f"{NAME}/short"))
    serve(site, "short", weights.read_bytes())
    assert fetch(find_publication(f"{NAME}/short")).record.published == sha256(weights)[:8]
    serve(site, "bare", weights.read_bytes()[:1000])
    with pytest.raises(FetchError, match=r"bare\.pt gave a file that could not be read: .*; it was removed\n"):
        fetch(find_publication(f"{NAME}/bare"))
    serve(site, "bare", weights.read_bytes())
    done = fetch(find_publication(f"{NAME}/bare"))
    assert (done.record.sha256, done.record.published) == (sha256(weights), "")
    assert BackboneConfig(NAME, "bare").weights == f"bare:{done.path}"


def test_hub(hub: Site, tmp_path: Path) -> None:
    model = build_model(find_architecture(NAME))
    path = write_weights(tmp_path / "open_clip_model.safetensors", model)
    headers = {"ETag": f'"{sha256(path)}"', "X-Repo-Commit": COMMIT}
    published = find_publication(f"{NAME}/hub")
    with pytest.raises(
        FetchError, match=r"huggingface\.co/org/small could not be fetched \(.*404.*\)\nBy hand: .*\n.*\n"
    ):
        fetch(published)
    hub.pages["/org/small/resolve/main/open_clip_model.safetensors"] = Page(path.read_bytes(), headers=headers)
    done = fetch(published)
    assert (done.path.name, done.record.sha256, done.record.published) == (path.name, sha256(path), "")
    assert done.record.source == "hf-hub:org/small/open_clip_model.safetensors"
    cached = next((tmp_path / "hub").rglob("blobs/*"))
    assert cached.samefile(done.path), "no space is used twice"
    assert load_backbone(BackboneConfig(NAME, "hub")).fingerprint == load_open_clip(NAME, f"hub:{path}").fingerprint
    shutil.rmtree(published.folder)
    cached.write_bytes(b"damaged")
    with pytest.raises(FetchError, match=r"in the hub's cache is damaged: it has 7 bytes .*; remove it: rm "):
        fetch(published)


# By hand


def test_file_put_there_by_hand_is_verified_at_its_first_use(site: Site, weights: Path) -> None:
    published = find_publication(NAME)
    published.folder.mkdir(parents=True)
    path = Path(shutil.copy(weights, published.folder / "download.pt"))
    config = BackboneConfig(NAME)
    assert config.weights == f"openai:{path}" and read_record(published.folder) is None
    load_backbone(config)
    record = read_record(published.folder)
    assert record is not None and (record.file, record.source) == ("download.pt", "put there by hand")
    changed = bytearray(weights.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    message = (
        rf"backbone\.weights: {path} is not the published file: it has {len(changed)} bytes with sha256 [0-9a-f]{{64}}"
        rf", and the published one is {sha256(weights)}; `clipautt backbone fetch {NAME}` gets it, then backbone={NAME}"
    )
    with pytest.raises(ValueError, match=message):
        load_backbone(config)
    with pytest.raises(
        FetchError, match=r"download\.pt is not the published file: .*; it was set aside as .*\.rejected; "
    ):
        fetch(published)
    assert files(published.folder) == ["download.pt.rejected", "weights.json"]
    shutil.copy(weights, path)
    assert fetch(published).path == path, "no network is needed for it"


def test_file_without_a_published_hash_may_not_change(site: Site, tmp_path: Path, weights: Path) -> None:
    published = find_publication(f"{NAME}/bare")
    published.folder.mkdir(parents=True)
    path = published.folder / "bare.pt"
    path.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"bare\.pt could not be read"):
        load_backbone(BackboneConfig(NAME, "bare"))
    assert read_record(published.folder) is None, "an unfinished copy is not remembered"
    shutil.copy(weights, path)
    load_backbone(BackboneConfig(NAME, "bare"))
    assert read_record(published.folder) is not None
    os.utime(path, ns=(0, 0))
    load_backbone(BackboneConfig(NAME, "bare"))  # copied once more: the content counts
    other = build_model(find_architecture(NAME))
    assert isinstance(other, CLIP)
    write_openai_weights(path, other)
    for use in (lambda: load_backbone(BackboneConfig(NAME, "bare")), lambda: fetch(published)):
        with pytest.raises(
            ValueError, match=r"bare\.pt has changed: .* Remove the file to fetch it again, or .*weights\.j"
        ):
            use()
    (published.folder / "weights.json").unlink()
    load_backbone(BackboneConfig(NAME, "bare"))


def test_folders_in_doubt(site: Site, weights: Path) -> None:
    folder = find_publication(NAME).folder
    folder.mkdir(parents=True)
    (folder / "small.pt").mkdir()
    (folder / "gone.pt").symlink_to(folder / "nowhere")
    (folder / ".small.pt.part").write_bytes(b"")
    assert BackboneConfig(NAME).weights is None
    for name in ("a.pt", "b.pt"):
        shutil.copy(weights, folder / name)
    with pytest.raises(ValueError, match=r"openai holds several files of weights: a\.pt, b\.pt; leave one there"):
        BackboneConfig(NAME)
    (folder / "b.pt").unlink()
    (folder / "weights.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"weights\.json is broken \(.*\); remove it, and the weights beside it are veri"
    ):
        load_backbone(BackboneConfig(NAME))


# Names


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("embedded", r"'embedded' comes with the package: there is nothing to fetch"),
        ("hf-hub:org/model", r"'hf-hub:org/model' is not fetched by name: give it as backbone=hf-hub:org/model"),
        ("vit-b-32", r"open_clip has no model 'vit-b-32'; similar names are ViT-B-32, "),
        ("../../etc/x", r"open_clip has no model '\.\.-\.\.-etc'"),
        ("", r"open_clip has no model ''; `clipautt backbone list` names some"),
        ("ViT-B-32/laion2b_s34b", r"ViT-B-32 has no tag 'laion2b_s34b'; similar ones are ViT-B-32/laion2b_s34b_b79k"),
        ("ViT-B-16-SigLIP", r"ViT-B-16-SigLIP has no usual weights: choose ViT-B-16-SigLIP/webli"),
        ("ViT-S-32", r"no weights are published for ViT-S-32; `clipautt backbone list all` lists what is"),
        ("ViT-B-32/openai", r"'openai' were trained with QuickGELU; .* use backbone\.name=ViT-B-32-quickgelu"),
        ("coca_ViT-B-32", r"has a text tower that takes no context vectors: it belongs to a CoCa model"),
    ],
)
def test_names_that_are_not_fetched(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_publication(word)


def test_what_is_published() -> None:
    chosen = {published.word: published for published, _ in recommended()}
    assert list(chosen) == [
        "ViT-B-32-quickgelu",
        "ViT-B-16-quickgelu",
        "ViT-L-14-quickgelu",
        "ViT-B-32",
        "ViT-B-16",
        "ViT-L-14",
    ]
    openai = chosen["ViT-B-32-quickgelu"]
    assert openai.sha256 == "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
    assert (openai.tag, openai.file, about_bytes(openai)) == ("openai", "ViT-B-32.pt", 353_436_676)
    laion = chosen["ViT-B-32"]
    assert (laion.tag, laion.repository) == ("laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    assert (laion.file, laion.sha256, about_bytes(laion)) == (None, "", 605_109_252)
    assert find_publication("ViT-B/32-quickgelu") == find_publication("ViT-B-32-quickgelu/OpenAI") == openai
    release = publication("ViT-B-32-quickgelu", "laion400m_e31")
    assert release is not None and (release.sha256, release.repository) == ("d867053b", "")
    everything = every_publication()
    assert len(everything) > 140 and len({(one.name, one.tag) for one in everything}) == len(everything)
    assert all(find_publication(one.word) == one for one in everything)
