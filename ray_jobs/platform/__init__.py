"""What the jobs stand on; no job is known here.

In: the words of a command line and the YAML files of `conf`. Out: typed settings, a connected Ray, run folders,
progress, a pool of actors, and the extraction that every job with features runs.

Open `configuration` first, then `runs` and `cluster`. `jobs` finds the jobs, `usage` prints their help.
"""
