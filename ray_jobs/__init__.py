"""The distributed jobs: each package with a module `job` is one `clipautt <job>`, a thin entry point over `clipautt`.

In: the words of a command line. Out: run folders, tables, pages or a server. Open `cli` first, the `clipautt` command;
`platform` has what all jobs use: settings, Ray, run folders, progress. Importing this package imports none of them.
"""
