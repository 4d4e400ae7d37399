"""What is said of lost nodes, and where Ray's own messages go; no Ray."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

import pytest

from ray_jobs.platform import messages
from ray_jobs.platform.messages import MessageFile, kept_aside, silence, watched
from ray_jobs.platform.progress import Progress, running

NODES = {"a1": "node 10.0.0.1 (a1) with 4 cores", "b2": "node 10.0.0.2 (b2) with 8 cores and 1 GPUs"}


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MessageFile:
    """A file of messages of its own, in a folder of its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(messages, "MESSAGES", MessageFile())
    return messages.MESSAGES


def wait_for(capsys: pytest.CaptureFixture[str], text: str) -> str:
    said, deadline = "", time.monotonic() + 20
    while text not in said:
        assert time.monotonic() < deadline, said
        time.sleep(0.01)
        said += capsys.readouterr().out
    return said


def test_a_lost_node_is_one_line_with_what_is_finished(capsys: pytest.CaptureFixture[str], file: MessageFile) -> None:
    alive = dict(NODES)
    with Progress("extract", 480) as progress, watched(lambda: dict(alive), every_seconds=0.01):
        progress.done = 100
        file.add("Task _map_task failed")
        del alive["b2"]
        said = wait_for(capsys, "lost")
        time.sleep(0.1)  # it is told once
        said += capsys.readouterr().out
    assert said == (
        "lost node 10.0.0.2 (b2) with 8 cores and 1 GPUs: what it was working on is done again on the other node, what "
        f"is finished stays (extract: 100 of 480 clips). Ray's messages: {file.path}\n"
    )
    assert running() == []


def test_a_node_that_joins_later_is_known_when_it_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    alive = {"a1": NODES["a1"]}
    with watched(lambda: dict(alive), every_seconds=0.01):
        alive["b2"] = NODES["b2"]
        time.sleep(0.2)
        alive.clear()
        said = wait_for(capsys, "10.0.0.1")
    assert set(said.splitlines()) == {
        f"lost {node}: what it was working on is done again as soon as there is another node, what is finished stays"
        for node in NODES.values()
    }


def test_a_cluster_that_does_not_answer_for_a_moment_has_lost_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [NODES, ConnectionError("busy"), NODES]

    def nodes() -> dict[str, str]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, ConnectionError):
            raise answer
        return dict(answer)

    with watched(nodes, every_seconds=0.01):
        time.sleep(0.2)
    assert capsys.readouterr().out == "" and len(answers) == 1


def say(count: int) -> None:
    """Send messages as Ray does."""
    from ray._private import worker

    for number in range(count):
        lines = [f"Task {number} failed, it is retried"]
        worker.print_to_stdstream({"lines": lines, "pid": "raylet", "is_err": False}, ignore_prefix=False)


def test_rays_messages_go_to_a_file_that_is_named_where_a_job_fails(
    capsys: pytest.CaptureFixture[str], file: MessageFile
) -> None:
    with pytest.raises(ConnectionError), kept_aside():
        say(300)
        raise ConnectionError("gone")
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"Ray's messages: {file.path}\n")
    lines = Path(file.path).read_text().splitlines()
    assert len(lines) == 300 and re.fullmatch(r"\S+ \S+ \(raylet\) Task 7 failed, it is retried", lines[7])


def test_the_messages_of_a_job_that_succeeds_are_removed_unless_they_were_named(
    capsys: pytest.CaptureFixture[str], file: MessageFile
) -> None:
    with kept_aside():
        say(3)
        path = Path(file.path)
        assert path.is_file()
    assert not path.exists() and capsys.readouterr() == ("", "")
    with kept_aside():
        say(3)
        named = Path(file.mention())
    assert len(named.read_text().splitlines()) == 3


def test_nothing_is_made_or_named_if_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with kept_aside():
        pass
    assert capsys.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


def test_a_silenced_logger_writes_to_the_file_with_its_tracebacks(
    capsys: pytest.CaptureFixture[str], file: MessageFile
) -> None:
    logger = logging.Logger("ray.data")
    logger.addHandler(logging.StreamHandler())
    silence(logger)
    silence(logger)
    try:
        raise ValueError("socket closed")
    except ValueError:
        logger.exception("an operator failed")
    assert capsys.readouterr().err == ""
    written = Path(file.path).read_text()
    assert written.count("an operator failed") == 1 and "Traceback" in written and "socket closed" in written
