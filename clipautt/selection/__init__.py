"""What may be concluded from trials: settings and their scores on held-out source subjects → figures and one page.

In: a table with a row per trial (its settings, the mean UAR over subjects, its status) and the UAR of every subject in
each trial. Out: which trials cannot be told apart from the best one, how the score depends on each setting, with
intervals, and `report.html`.

Open `report` first: a `SweepReport` is all that the page knows. `ranking`, `importances` and `curves` compute, the last
two with the model of `surrogate`; `figures` draws, `sentences` says it in words, and `page` puts them together.
"""
