"""`make gpu-check` on a CPU at tiny sizes: its rows and its file, and what becomes of parts that fail."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import gpu_check, gpu_parts
from tests.benchmarks.gpu_check import LIMITS, Report, Worker, check, main
from tests.benchmarks.gpu_parts import Row, Work

TINY = Work("cpu", "tiny")
MEASURED = [part for part in LIMITS if part != "tests"]


class InThisProcess:
    """A `Worker` that starts no process, since this one has imported everything already."""

    def ask(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = lambda: getattr(gpu_parts, function.__name__)(*arguments)

    def answers(self, until: float) -> Iterator[Any]:
        try:
            found = self._call()
            yield from found if isinstance(found, Iterator) else [found]
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def end(self) -> None:
        pass


def test_every_part_gives_rows_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "Worker", InThisProcess)
    monkeypatch.setattr(gpu_parts.logging, "disable", lambda level: None)  # that would outlast this test
    out = tmp_path / "found.json"
    assert main(["device=cpu", "size=tiny", f"parts={','.join(MEASURED)}", f"out={out}"]) == 0
    found = json.loads(out.read_text())
    rows = {(row["part"], row["case"]): row for row in found["rows"]}
    assert {part for part, _ in rows} == set(MEASURED) == {part["name"] for part in found["parts"]}
    assert rows["compiled", "exact bf16"]["status"] == "skipped"
    measured = [row for row in rows.values() if row["status"] != "skipped"]
    assert all(row["status"] == "ok" and row["value"] is not None for row in measured)
    for case in ("exact fp32", "exact bf16", "feature"):
        assert rows["tuning", case]["value"] > 0 and rows["tuning", case]["unit"] == "video-steps/s"
    assert rows["tuning", "exact fp32"]["share"] > 0 and rows["tuning", "feature"]["share"] is None
    assert rows["overlap", "fake: decoding and encoding"]["share"] > 0
    assert rows["windows", "one pass equals the loop"]["value"] < 1e-5
    assert rows["batched", "per video, entropy, fp32"]["value"] < 1e-5
    assert found["device"] == "cpu" and found["versions"]["torch"] and found["machine"] and found["seconds"] > 0
    said = capsys.readouterr().out
    assert all(case in said for _, case in rows) and str(out) in said


def test_a_part_that_raises_or_takes_too_long_is_a_row_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(work: Work) -> Iterator[Row]:
        yield Row("encoder", "first", 1.0)
        raise ValueError("no such tower")

    class Late(InThisProcess):
        def answers(self, until: float) -> Iterator[Any]:
            raise TimeoutError

    workers = iter([InThisProcess, Late, InThisProcess])
    monkeypatch.setattr(gpu_check, "Worker", lambda: next(workers)())
    whole: Callable[[Work], Any] = lambda work: iter([Row("windows", "all", 2.0)])  # noqa: E731
    for name, function in (("encoder", broken), ("windows", whole), ("tidy", lambda work: None)):
        function.__name__ = name
        monkeypatch.setattr(gpu_parts, name, function)
    report = Report(tmp_path / "found.json", {})
    check(["encoder", "tuning", "windows"], TINY, report, 1.0, gpu_check.Worker())
    assert [(row.part, row.status) for row in report.rows] == [
        ("encoder", "ok"),
        ("encoder", "failed"),
        ("tuning", "late"),
        ("windows", "ok"),
    ]
    assert report.rows[1].note == "ValueError: no such tower"
    assert len(json.loads(report.path.read_text())["rows"]) == 4


def test_a_worker_says_what_went_wrong_and_is_ended_when_its_time_is_over() -> None:
    worker = Worker()
    worker.ask(gpu_parts.tidy, "no work at all")
    with pytest.raises(RuntimeError, match="AttributeError"):
        list(worker.answers(time.monotonic() + 60))
    assert not worker.process.is_alive()
    worker = Worker()
    worker.ask(gpu_parts.facts, "cpu")
    with pytest.raises(TimeoutError):
        list(worker.answers(time.monotonic()))
    assert not worker.process.is_alive()


def test_without_a_gpu_there_is_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_check, "Worker", InThisProcess)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([]) == 0
    assert capsys.readouterr().out.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["fast", "size=huge", "parts=encoder,decoder", "speed=9"])
def test_a_wrong_argument_is_named(word: str) -> None:
    with pytest.raises(SystemExit, match=r"allowed:"):
        main([word])


def test_a_wrong_result_is_a_failed_row() -> None:
    import torch

    from tests.support.fakes import fake_source

    source = fake_source()
    problems = [torch.nn.functional.normalize(torch.randn(3, 16), dim=-1)]
    same = gpu_parts._compare("batched", "", source, problems, [source.au_embeddings], [source.au_embeddings], "fp32")
    assert (same.status, same.value) == ("ok", 0.0)
    other = -source.au_embeddings
    wrong = gpu_parts._compare("batched", "", source, problems, [other], [source.au_embeddings], "fp32")
    assert wrong.status == "failed"


def test_the_check_needs_no_ray_and_no_job() -> None:
    folder = Path(gpu_check.__file__).parent
    for name in ("gpu_check", "gpu_parts", "naive_adaptation", "machine"):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {m.split(".")[0] for m in modules} & {"ray", "ray_jobs", "hydra", "omegaconf"}
