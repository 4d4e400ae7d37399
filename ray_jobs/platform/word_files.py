"""Words of a command line from a file: `@best.yaml` stands for the words that the file holds for a job.

In: the words of a command line, and the job's name. Out: the words, with those of files in their place, so that later
ones win. A file is YAML: the names of jobs, each with a list of words, such as the `best.yaml` of a sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_jobs.platform.nearest import nearest

MARK = "@"


def expanded(job: str, words: Sequence[str]) -> list[str]:
    """The words with every `@file` replaced by what the file holds for this job.

    Raises:
        ValueError: there is no such file, or it has no words for the job.
    """
    return [one for word in words for one in (_words_of(word, job) if word.startswith(MARK) else [word])]


def _words_of(word: str, job: str) -> list[str]:
    if Path(word).exists():  # a video may have such a name
        return [word]
    content = _loaded(word)
    names = dict.fromkeys((job, job.replace("-", "_")))
    given = next((content[name] for name in names if name in content), None)
    if given is None:
        there = [str(name) for name, value in content.items() if isinstance(value, list)]
        has = f"it has words for {', '.join(there)}" if there else "it has none for any job"
        raise ValueError(f"{word}: no words for {job!r}; {has}. They are written `{job}: [key=value, …]`")
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise ValueError(f"{word}: {job} should be a list of words, each text as 'key=value', not {_shown(given)}")
    nested = next((one for one in given if one.startswith(MARK)), None)
    if nested is not None:
        raise ValueError(f"{word}: {job} has {nested!r}; a file of words names no other one")
    return given


def _loaded(word: str) -> dict[Any, Any]:
    import yaml  # not for commands without such a word

    path = Path(word.removeprefix(MARK)).expanduser()
    if path.is_dir():
        raise ValueError(f"{word}: {path} is a folder; give a YAML file in it")
    if not path.is_file():
        beside = [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = nearest(path.name, sorted(beside))
        hint = f"; did you mean {MARK}{path.parent / near}?" if near else ""
        raise ValueError(f"{word}: no such file{hint or '; a word with @ names a YAML file of words'}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{word}: not UTF-8; give a YAML file of words") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{word}: {where}{getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{word}: expected the names of jobs, each with a list of words, not {_shown(content)}")
    return content


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
