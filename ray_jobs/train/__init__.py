"""The train job: features of source subjects in, one checkpoint per subject baseline out.

Open `job` first; `streaming` feeds training from decoded clips instead of stored features.
"""
