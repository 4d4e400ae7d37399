"""The sweep job: source subjects in, the best settings out, by Ray Tune and Optuna.

Open `job` first; `space` is what is searched, `trial` one trial, `results` what is written at the end.
"""
