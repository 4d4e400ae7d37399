"""From predictions to scores, explanations and pages.

In: result rows, adapted prompts, OpenFace's tables. Out: scores per subject with intervals, what adaptation changed,
how far AUs agree with OpenFace, and pages that show it.

Open `results` first: a result row is what everything here reads. `prompt_changes` explains one subject, `clip_stories`
and `stories` show single clips, `openface` reads OpenFace's tables, `reports` writes the pages.
"""
