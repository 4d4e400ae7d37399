"""The distributed jobs: each module with a `main` is one `clipautt <job>`, a thin entry point over `clipautt`.

`cli` is the command, `configuration` composes and checks the settings, `runs` keeps the run folders, `cluster` finds or
starts Ray, `progress` prints. Importing this package imports none of them.
"""
