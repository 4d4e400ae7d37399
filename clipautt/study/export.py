"""Files of a study for R, SPSS, pandas and spreadsheets: CSV, a codebook, and the commands that read them.

In: a `Study`. Out: `subjects.csv`, `conditions.csv`, `differences.csv`, `validity.csv`, `clips_export.csv`,
`codebook.csv`, `import.R` and `import.sps` in a folder.

CSV is UTF-8 with a byte-order mark, for without one Excel and SPSS take it for another encoding. Cells are separated by
commas, decimals by points; true and false are 1 and 0; what is not known is empty. `import.sps` was run in GNU PSPP,
not in SPSS itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from clipautt.files import write_bytes
from clipautt.prediction.columns import columns_of
from clipautt.study.measures import Measure
from clipautt.study.names import portable_names
from clipautt.study.summary import EXCLUDED, FIRST, SECOND, Study
from clipautt.study.validity import about_reason, about_warning

SUBJECTS, CONDITIONS, DIFFERENCES = "subjects.csv", "conditions.csv", "differences.csv"
VALIDITY, CLIPS, CODEBOOK = "validity.csv", "clips_export.csv", "codebook.csv"
R_SCRIPT, SPSS_SYNTAX = "import.R", "import.sps"
FILES = (SUBJECTS, CONDITIONS, DIFFERENCES, VALIDITY, CLIPS, CODEBOOK, R_SCRIPT, SPSS_SYNTAX)
_MOST_LEVELS = 20
_LABEL_BYTES = 250
"""SPSS takes at most 256 bytes for the label of a variable."""
_SPSS_FORMATS = {"integer": "F10.0", "flag": "F1.0", "number": "F18.8"}
Kind = Literal["text", "integer", "number", "flag"]
_OWN: dict[str, tuple[str, str]] = {
    "clips": ("Clips of the subject, the condition, or the subjects that are compared", "count"),
    "clips_usable": ("Clips that count", "count"),
    "clips_excluded": ("Clips that do not count", "count"),
    "clips_warned": ("Clips that count and carry a warning", "count"),
    "clips_personalized": ("Clips that count and were predicted with a personalization", "count"),
    EXCLUDED: ("Why the clip does not count: its status, no_subject, no_condition or warning_<code>", ""),
    "not_learned": ("AUs that the backbone never learned; their figures mean nothing", ""),
    "measure": ("Name of the variable that the row is about, as in subjects.csv", ""),
    "measure_label": ("The same in words", ""),
    "measure_unit": ("Unit or range of the figures", ""),
    "measure_group": (
        "recording, classes, action_units or evidence; tests of a group are adjusted together",
        "",
    ),
    "learned": ("Whether the backbone has learned the AU; where it has not, its figures mean nothing", "true or false"),
    "subjects": ("Subjects with a value; for differences, in both conditions", "count"),
    "mean": ("Mean over subjects, each with the same weight", "as measure_unit"),
    "sd": ("Standard deviation over subjects; for differences, of the differences", "as measure_unit"),
    "low": ("Lower end of the 95 % bootstrap interval over subjects", "as measure_unit"),
    "high": ("Upper end of the interval", "as measure_unit"),
    "interval_kind": ("ok, few_subjects (fewer than 10: narrower than it should be) or none (fewer than 3)", ""),
    FIRST: ("The condition that is subtracted", ""),
    SECOND: ("The condition from which it is subtracted", ""),
    "mean_first": ("Mean in the first condition, over the subjects that have both", "as measure_unit"),
    "mean_second": ("Mean in the second condition, over the same subjects", "as measure_unit"),
    "difference": ("Mean difference within subjects, second minus first", "as measure_unit"),
    "dz": ("Difference divided by its standard deviation (Cohen's dz)", "standard deviations"),
    "p": ("Paired t test over subjects, two-sided; empty for fewer than 3 and for AUs never learned", "0 to 1"),
    "q": ("p adjusted for the tests of the same kind by Benjamini and Hochberg", "0 to 1"),
    "tests": ("Tests for which q is adjusted", "count"),
    "subjects_first_only": ("Subjects with clips that count in the first condition only; left out", "count"),
    "subjects_second_only": ("Subjects with clips that count in the second condition only; left out", "count"),
    "finding": ("excluded, or warned for clips that count and carry a warning", ""),
    "finding_code": ("Reason or warning", ""),
    "finding_about": ("What the code means", ""),
    "of_clips": ("All clips of the condition, or for warned those that count", "count"),
}
"""Columns that a study adds → what they say, and their unit."""
_NO_CLIPS = set(_OWN) - {EXCLUDED, "not_learned"}
"""Those of other tables than that of clips, which may have columns of these names from a manifest."""


@dataclass(frozen=True)
class Variable:
    """A column of an exported file."""

    name: str
    """Its portable name."""
    original: str
    """Its name in the tables of Python and `predict`."""
    label: str
    """What it is, in a few words where there are such words."""
    about: str
    """What it says."""
    unit: str
    """Unit or range; empty for text."""
    kind: Kind
    """What its values are."""
    width: int
    """For text, the longest value in bytes of UTF-8, at least 1."""


def write_study(folder: Path, given: Study) -> dict[str, str]:
    """Write all files of a study.

    Args:
        folder: where to; created if missing.
        given: the study.

    Returns:
        Name of every column in Python → its name in the files.
    """
    tables = {
        SUBJECTS: given.subjects,
        CONDITIONS: given.conditions,
        DIFFERENCES: given.differences,
        VALIDITY: given.validity,
        CLIPS: given.clips,
    }
    names = portable_names(str(name) for table in tables.values() for name in table.columns)
    for name in (CONDITIONS, DIFFERENCES):
        tables[name] = tables[name].assign(measure=tables[name]["measure"].map(names).astype(str))
    abouts, labels = _abouts(given), {one.name: one.label for one in given.measures}
    variables, book = {}, []
    for file, table in tables.items():
        plain = _plain(table)
        said = abouts if file != CLIPS else {name: about for name, about in abouts.items() if name not in _NO_CLIPS}
        variables[file] = [
            _variable(plain[column], names[column], table, said, labels) for column in map(str, plain.columns)
        ]
        _write_csv(folder / file, plain.rename(columns=names))
        book += [_entry(file, one, plain[one.original], given.measures) for one in variables[file]]
    _write_csv(folder / CODEBOOK, _plain(pd.DataFrame(book)))
    write_bytes(folder / R_SCRIPT, _r_script(variables).encode())
    write_bytes(folder / SPSS_SYNTAX, b"\xef\xbb\xbf" + _spss_syntax(variables).encode())
    return names


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_bytes(path, table.to_csv(index=False, float_format="%.10g", lineterminator="\r\n").encode("utf-8-sig"))


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Text on one line, true and false as 1 and 0, whole numbers without decimals."""
    made: dict[str, pd.Series[Any]] = {}
    for column in map(str, table.columns):
        values = table[column]
        if pd.api.types.is_bool_dtype(values):
            made[column] = values.astype("Int64")
        elif pd.api.types.is_numeric_dtype(values):
            known = values.dropna()
            whole = len(known) > 0 and bool((known == known.round()).all()) and bool((known.abs() < 2**53).all())
            made[column] = values.astype("Int64") if whole else values.astype(float)
        else:
            made[column] = values.fillna("").astype(str).map(lambda text: re.sub(r"\s*[\r\n\t\0]+\s*", " ", text))
    return pd.DataFrame(made)


def _abouts(given: Study) -> dict[str, tuple[str, str]]:
    """What every column says, and its unit."""
    codes = sorted({one.name.removesuffix("_mean") for one in given.measures if one.name.endswith("_mean")})
    abouts = {one.name: (one.about, one.unit) for one in columns_of("clips", classes=given.classes, action_units=codes)}
    abouts |= {one.name: (one.about, one.unit) for one in given.measures}
    abouts |= {name: ("Condition, as in the table of clips", "") for name in given.by}
    for name in map(str, given.subjects):
        start, _, code = name.partition("_")
        if start == "excluded":
            abouts[name] = f"Clips that do not count. {about_reason(code)}", "count"
        elif start == "warned":
            abouts[name] = f"Clips that count and carry a warning. {about_warning(code)}", "count"
    return abouts | _OWN


def _variable(
    values: pd.Series[Any],
    name: str,
    table: pd.DataFrame,
    abouts: Mapping[str, tuple[str, str]],
    labels: Mapping[str, str],
) -> Variable:
    column = str(values.name)
    about, unit = abouts.get(column, ("As in the table of clips", ""))
    kind: Kind = "text"
    if pd.api.types.is_bool_dtype(table[column]):
        kind = "flag"
    elif pd.api.types.is_numeric_dtype(values):
        kind = "integer" if pd.api.types.is_integer_dtype(values) and unit == "count" else "number"
    width = max((len(text.encode()) for text in values), default=1) if kind == "text" else 0
    return Variable(name, column, labels.get(column, about), about, unit, kind, max(width, 1) if kind == "text" else 0)


def _entry(file: str, one: Variable, values: pd.Series[Any], measures: Iterable[Measure]) -> dict[str, object]:
    """The row of a variable in the codebook."""
    missing = values == "" if one.kind == "text" else values.isna()
    known = values[~missing]
    learned = next((measure.learned for measure in measures if measure.name == one.original), None)
    return {
        "file": file,
        "name": one.name,
        "original_name": one.original,
        "label": one.label,
        "about": one.about,
        "type": one.kind,
        "unit": one.unit,
        "values": _range(one.kind, known),
        "missing": "empty",
        "n_rows": len(values),
        "n_missing": int(missing.sum()),
        "learned": "" if learned is None else "yes" if learned else "no",
    }


def _range(kind: Kind, known: pd.Series[Any]) -> str:
    if known.empty:
        return ""
    if kind == "flag":
        return "0 = no; 1 = yes"
    if kind != "text":
        return f"{float(known.min()):.6g} to {float(known.max()):.6g}"
    levels = sorted(set(known))
    return "; ".join(levels) if len(levels) <= _MOST_LEVELS else f"{len(levels)} different texts"


def _r_script(variables: Mapping[str, list[Variable]]) -> str:
    lines = [
        "# Reads the tables of a study into data frames: subjects, conditions, differences, validity, clips_export.",
        '# In R, from this folder: source("import.R", encoding = "UTF-8"). What every column means: codebook.csv.',
        "# A row of `subjects` is one subject in one condition. Clips of one subject are not independent: model the",
        "# subject, for instance with lme4::lmer(measure ~ condition + (1 | subject)), or compare within subjects.",
        "read_table <- function(file, text) {",
        '  head <- names(read.csv(file, fileEncoding = "UTF-8-BOM", nrows = 1, check.names = FALSE))',
        '  types <- ifelse(head %in% text, "character", "numeric")',
        '  read.csv(file, fileEncoding = "UTF-8-BOM", na.strings = "", colClasses = types, check.names = FALSE)',
        "}",
    ]
    for file, columns in variables.items():
        text = ", ".join(f'"{one.name}"' for one in columns if one.kind == "text")
        lines.append(f'{file.removesuffix(".csv")} <- read_table("{file}", c({text}))')
    return "\n".join(lines) + "\n"


def _spss_syntax(variables: dict[str, list[Variable]]) -> str:
    blocks = [
        "* Encoding: UTF-8.\n"
        "* Reads the tables of a study. First make the folder of this file the working directory: CD 'folder'.\n"
        "* What every variable means is in codebook.csv. A case of subjects is one subject in one condition.\n"
        "* Every table is saved as .sav; subjects stays open.\n"
        "* One case per subject, for paired tests: SORT CASES and CASESTOVARS /ID=subject, /INDEX= the condition.\n"
        "SET DECIMAL=DOT.\n",
        *(_spss_table(file, variables[file]) for file in reversed(variables)),
    ]
    return "\n".join(blocks)


def _spss_table(file: str, columns: list[Variable]) -> str:
    formats = "\n".join(f"    {one.name} {_SPSS_FORMATS.get(one.kind, f'A{min(one.width, 32767)}')}" for one in columns)
    labels = "\n".join(f"  /{one.name} '{_spss_text(one.label)}'" for one in columns).replace("  /", "  ", 1)
    flags = " ".join(one.name for one in columns if one.kind == "flag")
    values = f"VALUE LABELS {flags} 0 'no' 1 'yes'.\n" if flags else ""
    return (
        f"GET DATA\n  /TYPE=TXT\n  /FILE='{file}'\n  /ENCODING='UTF8'\n  /DELCASE=LINE\n  /DELIMITERS=\",\"\n"
        f"  /QUALIFIER='\"'\n  /ARRANGEMENT=DELIMITED\n  /FIRSTCASE=2\n  /VARIABLES=\n{formats}.\n"
        f"VARIABLE LABELS\n{labels}.\n{values}SAVE OUTFILE='{file.removesuffix('.csv')}.sav'.\n"
    )


def _spss_text(text: str) -> str:
    """Text between quotes of SPSS, with at most the bytes that a label may have."""
    cut = text.encode()[:_LABEL_BYTES].decode(errors="ignore")
    return re.sub(r"\s+", " ", cut).replace("'", "''")
