"""The predict job: one video in, one prediction out. Open `job` first."""
