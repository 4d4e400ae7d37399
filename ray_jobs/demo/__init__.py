"""The demo job: runs the other jobs one after another on rendered faces. Open `job` first."""
