"""From a data set on disk to a manifest.

In: the root folder of a data set as its owners ship it. Out: a `Reading`: clips with subjects, labels and splits, and
all problems, listed together.

Open `biovid` first for an example of a reader; `layout`, `files` and `label_files` have what readers share. `synthetic`
renders faces.
"""
