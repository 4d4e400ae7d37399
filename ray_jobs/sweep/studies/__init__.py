"""The Optuna study of a sweep: it survives kills, and several drivers share it.

In: a storage, a sampler and the settings that decide what a trial is. Out: trials to run, and records of what became of
them. Open `study` first; `storage` is where it is kept, `drivers` who works on it, `states` and `records` what a trial
is, `samplers` who chooses its values. Nothing here knows Ray.
"""
