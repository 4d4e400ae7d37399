"""The report of a run: tables, figures and one self-contained page, from result rows and a few explained clips.

Open `page` first: `write_report` writes everything. `tables` and `sentences` compute what the page says, `figures`
draws what it shows.
"""
