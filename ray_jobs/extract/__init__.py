"""The extract job: fills the feature store and writes a report. Open `job` first."""
