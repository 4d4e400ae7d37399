"""The report of a run: tables, figures and one self-contained page, from result rows and a few explained clips.

Open `page` first: `write_report` is the whole of it. `tables` and `sentences` compute what it says, `figures`
draws what it shows.
What this package does not know: how predictions were made, where a run keeps its files, or who starts it.
"""
