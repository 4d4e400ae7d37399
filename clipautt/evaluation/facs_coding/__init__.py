"""Human FACS coding of the same videos, and how far our AU similarities agree with it.

In: intervals as a text table or an ELAN document, or codes per frame as DISFA and BP4D publish them; clips; and the AU
similarities of their windows. Out: a `ClipCoding` per clip, and tables of ROC-AUC, rank correlation and ICC per AU with
intervals over subjects.

Open `coding` first: what every format is read into. `notation` reads AU codes and intensities, `text_tables` and `elan`
read files, `matching` finds the coding of each clip, and `comparison` computes the figures.
"""
