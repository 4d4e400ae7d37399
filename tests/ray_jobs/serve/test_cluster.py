"""The server of a Serve YAML on a cluster: the node that answers is not the one that decodes and encodes."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from clipautt.model.checkpoint import save_checkpoint
from ray_jobs.cli import main
from ray_jobs.serve.settings import ServeConfig
from tests.support.fakes import write_video
from tests.support.recordings import face_frames
from tests.support.server_process import ended, free_port
from tests.support.serving import small_source

HIDES = """
import os
seen, hidden = os.stat, tuple(os.environ.get("HIDES", "").split())
def stat(path, *arguments, **options):
    if hidden and str(path).startswith(hidden):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return seen(path, *arguments, **options)
os.stat = stat
"""
"""For a `sitecustomize.py`: processes with HIDES in the environment do not see what lies below these paths."""


@pytest.fixture
def ports(no_ray: None, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A node without cores, for the web side, and one with cores, which does not see uploads; two free ports."""
    from ray.cluster_utils import Cluster

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent(HIDES))
    dashboard, found = free_port(), (free_port(), free_port())
    spools = [ServeConfig(port=port).spool for port in found]
    hidden = " ".join(f"{spool}/uploads {spool}/jobs" for spool in spools)
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(tmp_path / "site"), str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("RAY_DASHBOARD_ADDRESS", f"http://127.0.0.1:{dashboard}")
        head: dict[str, Any] = {
            "num_cpus": 0,
            "include_dashboard": True,
            "dashboard_port": dashboard,
            "resources": {"web": 1},
        }
        nodes = Cluster(initialize_head=True, head_node_args=head)
        nodes.add_node(num_cpus=4, env_vars={"HIDES": hidden})
        try:
            yield found
        finally:
            nodes.shutdown()  # type: ignore[no-untyped-call]


def deployed(folder: Path, port: int, *words: str) -> str:
    """Build a YAML, put its web side on the first node, and start it; gives the server's address."""
    file = folder / "serve.yaml"
    given = [f"models={{pain: {folder}/model}}", f"runs={folder}/runs", f"port={port}", f"out={file}"]
    assert main(["serve", "build", *given, *words]) == 0
    content = yaml.safe_load(file.read_text())
    content["applications"][0]["deployments"] = [
        {"name": "web", "ray_actor_options": {"num_cpus": 0, "resources": {"web": 0.01}}}
    ]
    file.write_text(yaml.safe_dump(content))
    assert main(["serve", "deploy", str(file)]) == 0
    return f"http://127.0.0.1:{port}"


def files_in(spool: Path) -> list[Path]:
    return [path for path in spool.rglob("*") if path.is_file() and path.parent.name != ".alive"]


@pytest.mark.cluster
def test_servers_of_a_cluster_whose_nodes_share_no_uploads(
    ports: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(small_source(subject_baseline="median").checkpoint, tmp_path / "model")
    video = write_video(tmp_path / "face.mp4", face_frames()).read_bytes()
    other = write_video(tmp_path / "other.mp4", face_frames(40)).read_bytes()
    url = deployed(tmp_path, ports[0])
    assert "clipautt-server runs; `serve status` shows its state" in capsys.readouterr().out
    answer = httpx.post(f"{url}/v1/predict", files={"video": video}, timeout=60)
    assert answer.status_code == 200, answer.text

    labels = {"model": "pain", "labels": json.dumps(["Pain", "Neutral"])}
    shown = httpx.post(f"{url}/api/predict", files={"video": video}, data=labels, timeout=60).json()
    annotated = httpx.get(f"{url}{httpx.URL(shown['annotatedVideoUrl']).path}")
    assert (annotated.status_code, annotated.content[4:8]) == (200, b"ftyp")

    for number, content in enumerate((video, other), start=1):
        sent: dict[str, Any] = {"files": {"video": content}, "data": {"keep": "true"}}
        job = ended(url, httpx.put(f"{url}/v1/subjects/anna", **sent, timeout=60).json())
        assert (job["status"], job["subject"] and job["subject"]["kept_clips"]) == ("done", number), job
    assert files_in(ServeConfig(port=ports[0]).spool / "decoders") == []
    kept = (tmp_path / "runs/serve/server/subjects").rglob(".clips/anna/*")
    assert sorted(path.read_bytes() for path in kept) == sorted([video, other])

    second = deployed(tmp_path, ports[1], "name=ward")
    assert deployed(tmp_path, ports[0], "max_seconds=1") == url, "a changed YAML replaces the running server"
    refused = httpx.post(f"{url}/v1/predict", files={"video": video}, timeout=60)
    assert refused.json()["detail"] == "the video is 2.0 s long; at most 1 s are allowed"
    assert httpx.get(f"{url}/v1/subjects/anna").json()["kept_clips"] == 2
    answer = httpx.post(f"{second}/v1/predict", files={"video": video}, timeout=60)
    assert answer.status_code == 200, "another name is another server, which stays"
