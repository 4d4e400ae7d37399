"""Words of a command line that come from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.platform.configuration import compose
from ray_jobs.platform.jobs import find_job, overrides

BEST = """\ufefftrial: 3
train: [train.epochs=2, name=best, "manifest='a b.parquet'"]
adapt:
- adapt=infomax
- adapt.method.steps=5
import_checkpoint: [name=z]
predict: []
store: name=x
extract: [1]
report: ['@other.yaml']
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("best.yaml").write_text(BEST)
    Path("folder.yaml").mkdir()
    Path("syntax.yaml").write_text("train: [a\nb: 1\n")
    Path("list.yaml").write_text("- a=1\n")
    Path("latin.yaml").write_bytes(b"train: [name=\xe9]\n")


@pytest.mark.parametrize(
    ("job", "words", "expected"),
    [
        ("train", ["@best.yaml", "name=x"], ["train.epochs=2", "name=best", "manifest='a b.parquet'", "name=x"]),
        ("adapt", ["seed=1", "@./best.yaml"], ["seed=1", "adapt=infomax", "adapt.method.steps=5"]),
        ("import-checkpoint", ["@best.yaml"], ["name=z"]),
        ("predict", ["@best.yaml", "seconds=3"], ["seconds=3"]),
    ],
)
def test_they_take_the_place_of_the_file(job: str, words: list[str], expected: list[str]) -> None:
    assert overrides(find_job(job), words) == expected


def test_later_words_win() -> None:
    cfg = compose("adapt", overrides(find_job("adapt"), ["@best.yaml", "adapt.method.steps=7"]))
    assert (cfg.adapt.method.objective, cfg.adapt.method.steps) == ("infomax", 7)


def test_a_video_may_be_named_so() -> None:
    Path("@me.mp4").touch()
    assert overrides(find_job("predict"), ["@me.mp4"]) == ["videos=['@me.mp4']"]


@pytest.mark.parametrize(
    ("job", "word", "message"),
    [
        ("train", "@bst.yaml", r"^@bst\.yaml: no such file; did you mean @best\.yaml\?$"),
        ("train", "@no/such", r"^@no/such: no such file; a word with @ names a YAML file of words$"),
        ("train", "@folder.yaml", r"^@folder\.yaml: folder\.yaml is a folder; give a YAML file in it$"),
        ("train", "@syntax.yaml", r"^@syntax\.yaml: line 2: expected ',' or '\]', but got ':'$"),
        ("train", "@list.yaml", r"^@list\.yaml: expected the names of jobs, each with a list of words, not \['a=1'\]$"),
        ("train", "@latin.yaml", r"^@latin\.yaml: not UTF-8; give a YAML file of words$"),
        (
            "serve",
            "@best.yaml",
            r"^@best\.yaml: no words for 'serve'; it has words for train, adapt, import_checkpoint, predict, extract, "
            r"report\. They are written `serve: \[key=value, …\]`$",
        ),
        (
            "store",
            "@best.yaml",
            r"^@best\.yaml: store should be a list of words, each text as 'key=value', not 'name=x'$",
        ),
        ("extract", "@best.yaml", r"^@best\.yaml: extract should be a list of words, .* not \[1\]$"),
        ("report", "@best.yaml", r"^@best\.yaml: report has '@other\.yaml'; a file of words names no other one$"),
    ],
)
def test_a_wrong_file_is_explained(job: str, word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overrides(find_job(job), [word])
