"""The report job: runs of `adapt` or tables of clips in; pages, figures and tables out. Open `job` first."""
