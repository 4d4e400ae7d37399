"""The manifest job: looks at a data set before anything is computed. Open `job` first."""
