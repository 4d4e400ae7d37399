"""From predictions to scores, explanations and pages.

In: result rows, adapted prompts, other tools' tables of AUs, tables of predicted clips. Out: scores per subject with
intervals, what adaptation changed, how far AUs agree with other tools, what differs between conditions, and pages that
show it.

Open `results` first: a result row is what everything here reads. `prompt_changes` explains one subject, `clip_stories`
and `stories` show single clips, `au_tables` reads other tools' tables, `study` summarizes predicted clips, `reports`
writes the pages.
"""
