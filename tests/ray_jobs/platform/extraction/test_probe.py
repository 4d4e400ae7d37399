"""What a node has to see before the first clip: the look itself, and two real nodes of which one sees less."""

from __future__ import annotations

import os
import stat
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipautt.features.contents import content_of
from clipautt.manifest import write_manifest
from ray_jobs import cli
from ray_jobs.platform.cluster import Node, avoiding, num_cpus, usable_nodes
from ray_jobs.platform.extraction import probe
from ray_jobs.platform.extraction.decode_stage import check_readable
from ray_jobs.platform.extraction.probe import Needs, look, unfit_nodes
from tests.support.fakes import numbered_frames, write_video
from tests.support.stored import clip_at


def needs(folder: Path, **other: Any) -> Needs:
    """What is all there, but for `other`."""
    for name in ("video.mp4", "weights.pt", "store/mark"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(Path(name).name)
    (folder / "frames").mkdir()
    sources = (str(folder / "video.mp4"), str(folder / "frames"))
    files = {str(folder / "weights.pt"): content_of(folder / "weights.pt")}
    return Needs(**{"sources": sources, "files": files, "store": str(folder / "store"), "mark": "mark"} | other)


def test_a_node_that_sees_everything_can_work_and_leaves_nothing_behind(tmp_path: Path) -> None:
    assert look(needs(tmp_path)) == ""
    assert os.listdir(tmp_path / "store") == ["mark"]


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (
            "video.mp4",
            "cannot read {0}/video.mp4 (No such file or directory), which is there where the job was started",
        ),
        ("frames", "cannot read {0}/frames (No such file or directory), which is there where the job was started"),
        ("weights.pt", "cannot read {0}/weights.pt (No such file or directory), which is there"),
        ("store/mark", "sees another folder at store={0}/store, or none, than the machine where the job was started"),
    ],
)
def test_what_a_node_does_not_see_is_named(tmp_path: Path, missing: str, said: str) -> None:
    asked = needs(tmp_path)
    path = tmp_path / missing
    path.rmdir() if path.is_dir() else path.unlink()
    assert look(asked).startswith(said.format(tmp_path))


def test_other_weights_under_the_same_path_are_noticed(tmp_path: Path) -> None:
    asked = needs(tmp_path)
    (tmp_path / "weights.pt").write_text("weights of another model")
    assert look(asked) == f"has another file at {tmp_path}/weights.pt than the machine where the job was started"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read everything")
def test_what_may_not_be_read_or_written_is_named(tmp_path: Path) -> None:
    asked = needs(tmp_path)
    (tmp_path / "store").chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert look(asked) == f"cannot write to store={tmp_path}/store (Permission denied)"
    (tmp_path / "video.mp4").chmod(0)
    assert look(asked).startswith(f"cannot read {tmp_path}/video.mp4 (Permission denied)")


def test_looking_at_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_readable(str(tmp_path / "pipe"))


def test_some_of_many_sources_are_asked_for(tmp_path: Path) -> None:
    """Of all folders; those that are not here are the clips' own fault."""
    paths = [str(tmp_path / f"{folder}-{n:03}.mp4") for folder in "abcd" for n in range(100)]
    for path in paths[1:]:
        Path(path).touch()
    chosen = probe._spread(paths)
    assert 50 <= len(chosen) <= 64 and paths[0] not in chosen and {Path(path).name[0] for path in chosen} == set("abcd")


@pytest.mark.usefixtures("local_ray")
def test_the_drivers_own_node_needs_no_probe(tmp_path: Path) -> None:
    assert unfit_nodes([str(tmp_path / "gone.mp4")], [], str(tmp_path / "store")) == {}
    assert not (tmp_path / "store").exists()
    (node,) = usable_nodes()
    assert node.cpus == 2 and usable_nodes({node.node_id}) == [] and num_cpus({node.node_id}) == 1
    assert avoiding(()) is None and avoiding({"b", "a"}) == {"ray.io/node-id": "!in(a,b)"}
    assert str(Node("0123456789", "10.0.0.1", 1, 0)) == "node 10.0.0.1 (01234567)"


HIDES = """
import os, sys
def hide(event, arguments):
    hidden = os.environ.get("HIDES")
    if event == "open" and hidden and str(arguments[0]).startswith(hidden):
        raise FileNotFoundError(2, "No such file or directory", str(arguments[0]))
sys.addaudithook(hide)
"""
"""For a `sitecustomize.py`: processes with HIDES in the environment do not see what lies below that path."""


@pytest.fixture
def cluster(no_ray: None, tmp_path: Path) -> Iterator[Any]:
    """Two connected nodes; the second, which has more cores, does not see the folder `videos`."""
    import ray
    from ray.cluster_utils import Cluster

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent(HIDES))
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(__file__).parents[4])
        path = os.pathsep.join([str(tmp_path / "site"), root, os.environ.get("PYTHONPATH", "")])
        patch.setenv("PYTHONPATH", path)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=3, node_ip_address="127.0.0.2", env_vars={"HIDES": str(tmp_path / "videos")})
        ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
        try:
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


def words(folder: Path) -> list[str]:
    """An extraction of twelve clips."""
    (folder / "videos").mkdir()
    video = write_video(folder / "videos" / "numbered.mp4", numbered_frames(24))
    clips = [
        clip_at(folder / "videos", f"c{i}", file="numbered", label="pain", start_frame=i, end_frame=i + 12)
        for i in range(12)
    ]
    assert {clip.source for clip in clips} == {str(video)}
    write_manifest(clips, folder / "m.parquet", classes=("neutral", "pain"))
    places = [f"manifest={folder}/m.parquet", f"store={folder}/store", f"runs={folder}/runs"]
    return ["extract", *places, "pipeline.clips_per_task=1"]


@pytest.mark.cluster
def test_a_node_that_does_not_see_the_videos_is_named_and_not_used(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(tmp_path)) == 0
    said = capsys.readouterr().out
    assert said.count(" is not used: it cannot read ") == 1 and "numbered.mp4 (No such file or directory)" in said
    assert "12 clips encoded, 0 already in the store, 0 without features" in said


@pytest.mark.cluster
def test_clips_that_fail_on_a_node_are_tried_elsewhere(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose storage goes after the probe; it fails fast and so takes most of the clips."""
    monkeypatch.setattr(probe, "_spread", lambda _: ())
    assert cli.main(words(tmp_path)) == 0
    said = capsys.readouterr().out
    assert said.count("is not used any more: it cannot read clips, which are tried elsewhere") == 1
    assert "12 clips encoded, 0 already in the store, 0 without features" in said


@pytest.mark.cluster
def test_a_job_stops_with_the_reason_if_no_node_is_left(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As seen from a machine that is none of the nodes."""
    monkeypatch.setattr(probe, "_own_node", lambda: "")
    asked = words(tmp_path)
    monkeypatch.setattr(probe, "look", lambda _: "cannot read /videos (No such file or directory)")
    assert cli.main(asked) == 2
    said = capsys.readouterr().err
    assert said.startswith("clipautt extract: no node can do the work; node ") and "it cannot read /videos" in said
    assert len(said.splitlines()) == 1
