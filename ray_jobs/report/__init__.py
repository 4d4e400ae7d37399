"""The report job: runs of `adapt` in, tables, figures and a page out. Open `job` first."""
