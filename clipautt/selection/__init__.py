"""Choosing settings without target labels: how well settings do on source subjects that the model never saw.

In: labelled features of source subjects, and the scores of settings that were tried. Out: subjects divided into folds
and a held-out part, scores per subject, and what may be concluded from them, as figures and one page. `folds` and
`scoring` are the objective of a sweep, `curves` and `importances` what its trials say, `page` shows the result.
"""
