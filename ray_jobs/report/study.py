"""The report of predicted clips: the part of the report job that makes a study of tables of clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from clipautt.footage import is_rendered
from clipautt.study import Study, read_clips, study
from clipautt.study.export import FILES
from clipautt.study.page import PAGE, first_words, headline, top_warnings, write_study_page
from clipautt.study.validity import FINDING
from ray_jobs.platform.progress import table
from ray_jobs.platform.runs import versions

_LOOKED_AT = 200
"""Videos that are looked at for the mark of rendered faces."""


@dataclass(frozen=True)
class StudyRequest:
    """What is to be reported."""

    tables: tuple[Path, ...]
    """Tables of clips."""
    out: Path
    """Folder of the report."""
    by: tuple[str, ...] | None = None
    """Columns that define the conditions; None: `condition` if there is one."""
    exclude_warnings: tuple[str, ...] = ()
    """Codes of warnings whose clips are left out."""
    reference: str | None = None
    """The condition with which the others are compared."""


def requested(cfg: DictConfig) -> StudyRequest:
    """The request in the settings of the job."""
    tables = tuple(Path(path) for path in _texts(cfg.table) or ())
    if not tables:
        raise ValueError("table=[]: name at least one table of clips")
    out = Path(cfg.out) if cfg.out else tables[0].with_name(f"{tables[0].stem}_report")
    reference = None if cfg.reference is None else str(cfg.reference)
    return StudyRequest(tables, out, _texts(cfg.by), _texts(cfg.exclude_warnings) or (), reference)


def report_study(request: StudyRequest) -> tuple[Path, Study]:
    """Write the page and the files of a study.

    Returns:
        The path of the page, and the study.

    Raises:
        FileNotFoundError: if a table is missing.
        ValueError: as `read_clips` and `study`, or if a table would be overwritten.
    """
    if request.out.is_file():
        raise ValueError(f"out={request.out} is a file; name a folder")
    for path in request.tables:
        if any(
            (request.out / name).exists() and path.exists() and (request.out / name).samefile(path) for name in FILES
        ):
            raise ValueError(f"out={request.out}: {path.name} would be overwritten; give another folder")
    clips = read_clips(request.tables)
    made = study(clips, by=request.by, exclude_warnings=request.exclude_warnings, reference=request.reference)
    rendered = [is_rendered(source) for source in _some(sorted(set(made.clips["source"]) - {""}))]
    facts = {
        "Tables": ", ".join(path.name for path in request.tables),
        "Model": f"classes {', '.join(clips.classes)}; {len(clips.action_units)} action units",
        "Packages": ", ".join(f"{name} {version}" for name, version in versions()["packages"].items() if version),
    }
    names = ", ".join(path.stem for path in request.tables)
    synthetic = bool(rendered) and all(rendered)
    return write_study_page(request.out, made, title=f"Study: {names}", facts=facts, synthetic=synthetic), made


def main(cfg: DictConfig) -> int:
    """Report on tables of clips."""
    request = requested(cfg)
    _, made = report_study(request)
    for sentence in top_warnings(made):
        print(f"warning: {sentence}")
    print(headline(made))
    for sentence in (*first_words(made), *(f"to check: {note}" for note in made.notes)):
        print(sentence)
    _show_validity(made)
    print(f"report: {request.out / PAGE}")
    return 0


def _show_validity(made: Study) -> None:
    """Print excluded clips and warnings, all conditions together."""
    counts = made.validity.groupby(list(FINDING), sort=True, as_index=False)["clips"].sum()
    if len(counts):
        rows = [tuple(map(str, row)) for row in counts[["clips", *FINDING]].itertuples(index=False)]
        table(rows, ["clips", "", "code", "meaning"])


def _texts(given: object) -> tuple[str, ...] | None:
    """A setting that may be one text or a list."""
    if given is None:
        return None
    return tuple(str(item) for item in given) if isinstance(given, ListConfig) else (str(given),)


def _some(items: Sequence[str]) -> list[str]:
    """At most `_LOOKED_AT` items, evenly spread."""
    return [*items][:: max(1, -(-len(items) // _LOOKED_AT))]
