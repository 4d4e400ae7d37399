"""A data set's layout on disk into a manifest.

In: the root folder of a data set as its owners ship it. Out: a `Reading`: clips with subjects, labels and splits, and
everything that is wrong, listed at once.

Open `biovid` first for how a reader looks; `layout`, `files` and `label_files` have what readers share. `synthetic`
renders faces.
"""
