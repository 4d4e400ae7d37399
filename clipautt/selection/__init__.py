"""Choosing settings without target labels: how well they do on source subjects that the model never saw.

In: labelled features of source subjects, and settings to try. Out: subjects divided into folds and a held-out part, UAR
per subject, and what may be concluded from many trials: which cannot be told apart from the best one, how the score
depends on each setting, with intervals, and `report.html`.

`folds` and `scoring` are the objective. Of the conclusions, open `report` first: a `SweepReport` is all that the page
knows. `ranking`, `importances` and `curves` compute, the last two with the model of `surrogate`; `figures` draws,
`sentences` says it in words, and `page` puts them together.
"""
