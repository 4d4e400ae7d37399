"""Progress lines and tables, with a clock of our own."""

from __future__ import annotations

import io

import pytest

from ray_jobs.platform.progress import Progress, duration, format_table
from tests.support.clock import Clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_every_tenth_of_the_way() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("extract", 100, stream=stream, clock=clock) as progress:
        for step in range(100):
            clock.now += 0.2
            progress.advance(failed=step == 49)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "extract: 10/100 clips, 5/s, 18 s left"
    assert lines[-1] == "extract: 100/100 clips, 5/s, 20 s, 1 failed"


def test_slow_work_prints_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("train", 1000, unit="epochs", stream=stream, clock=clock) as progress:
        for _ in range(5):
            clock.now += 6.0
            progress.advance(note="loss 0.5")
    assert stream.getvalue().splitlines() == [
        "train: 2/1000 epochs, 0.167/s, 1 h 40 min left, loss 0.5",
        "train: 4/1000 epochs, 0.167/s, 1 h 40 min left, loss 0.5",
        "train: 5/1000 epochs, 0.167/s, 1 h 40 min left, loss 0.5",
    ]


def test_quick_work_prints_once() -> None:
    stream = io.StringIO()
    with Progress("extract", 50, stream=stream, clock=Clock()) as progress:
        for _ in range(50):
            progress.advance()
    assert len(stream.getvalue().splitlines()) == 1


def test_a_terminal_keeps_one_line() -> None:
    stream, clock = Terminal(), Clock()
    with Progress("extract", 2, stream=stream, clock=clock) as progress:
        for _ in range(2):
            clock.now += 1.0
            progress.advance()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().split("\r")[-1].rstrip() == "extract: 2/2 clips, 1/s, 2 s"


def test_an_unknown_total() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("decode", stream=stream, clock=clock) as progress:
        clock.now += 2.0
        progress.advance(8)
    assert stream.getvalue() == "decode: 8 clips, 4/s, 2 s\n"


def test_nothing_done_divides_by_nothing() -> None:
    stream = io.StringIO()
    with Progress("decode", 0, stream=stream, clock=Clock()):
        pass
    assert stream.getvalue() == "decode: 0/0 clips, 0 s\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_table_aligns_text_left_and_numbers_right() -> None:
    rows = [["zero-shot", 0.66, "66.0 ± 2.1", 4], ["majority", None, "50.0", 1200]]
    assert format_table(rows, ["method", "UAR", "WAR", "clips"]).splitlines() == [
        "method      UAR         WAR  clips",
        "---------  ----  ----------  -----",
        "zero-shot  0.66  66.0 ± 2.1      4",
        "majority      -        50.0   1200",
    ]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row=\[1\]: expected 2 cells"):
        format_table([[1]], ["a", "b"])
