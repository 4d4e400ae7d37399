"""The store job: lists, verifies and cleans the feature store. Open `job` first."""
