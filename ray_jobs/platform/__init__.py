"""What all jobs share; nothing here depends on a job.

In: the words of a command line and the YAML files of `conf`. Out: typed settings, a connected Ray, run folders,
progress, a pool of actors, and the extraction of features.

Open `configuration` first, then `runs` and `cluster`. `jobs` finds the jobs, `usage` writes their help.
"""
