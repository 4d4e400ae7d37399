"""A folder of predicted clips as a study: means per subject and condition, intervals over subjects, and export.

In: tables of clips, as `clipautt predict FOLDER out=clips.csv` writes them. Out: a `Study`, and files for R and SPSS.

Open `summary` first: `study` computes everything. `clip_table` reads and checks the tables, `statistics` has intervals
and tests over subjects, `export` writes files with the names that `names` makes valid everywhere, `page` the page.
"""

from clipautt.study.clip_table import ClipTable, read_clips
from clipautt.study.summary import Study, study

__all__ = ["ClipTable", "Study", "read_clips", "study"]
