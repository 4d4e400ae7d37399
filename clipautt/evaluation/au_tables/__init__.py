"""Tables of action units that other tools wrote for the same videos, to compare our similarities with.

In: a folder of text tables by OpenFace 2, py-feat, LibreFace or iMotions (AFFDEX), and clips. Out: an `AuTrack` per
clip, in seconds of the clip and under our AU codes; a table that cannot belong to its clip is refused with the reason.
Nothing here runs a tool, and no tool's estimates are ground truth.

Open `formats` first: which tool writes which columns. `reading` reads a table, `faces` chooses the face, `matching`
finds the table of a clip, and `fitting` compares the two.
"""
