"""What the model says of a video: a typed answer, its tables, and what speaks against it.

In: windows of a clip and their numbers. Out: a `VideoPrediction`, whose tables have the columns of `columns`.

Open `answers` first; `cautions` are the warnings, with a code each, `columns` describes every column of every table.
`figure`, `notebook` and `overlay` show an answer as a figure, as HTML and around its video.
"""
