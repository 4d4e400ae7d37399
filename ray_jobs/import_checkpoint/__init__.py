"""The import-checkpoint job: a checkpoint of the paper's code becomes one of ours. Open `job` first."""
