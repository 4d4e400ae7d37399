"""The adapt job: clips of unseen subjects in, result rows and adapted prompts per subject out.

Open `job` first: plan, execute, finish. `plan` decides what is left to do for each subject, `checks` refuses what
cannot work, `actor` computes, `results` keeps the run's files.
"""
