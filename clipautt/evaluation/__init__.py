"""From predictions to scores, explanations and pages.

In: result rows, adapted prompts, other tools' tables of AUs, human FACS coding. Out: scores per subject with intervals,
what adaptation changed, how far AUs agree with other tools and with people, and pages that show it.

Open `results` first: a result row is what everything here reads. `prompt_changes` explains one subject, `clip_stories`
and `stories` show single clips, `au_tables` reads other tools' tables, `facs_coding` compares with people's coding,
`reports` writes the pages.
"""
