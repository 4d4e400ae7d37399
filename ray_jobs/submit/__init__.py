"""The submit job: runs another job on a Ray cluster. Open `job` first."""
