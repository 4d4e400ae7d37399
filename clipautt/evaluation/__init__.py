"""Predictions into knowledge.

In: result rows, explanations, tables of other tools. Out: scores per subject with intervals, what adaptation changed,
how far AUs agree with OpenFace, and pages that show it.

Open `results` first: a result row is what everything here reads. `prompt_changes` explains one subject, `clip_stories`
and `stories` show single clips, `openface` reads OpenFace's tables, `reports` draws.
"""
