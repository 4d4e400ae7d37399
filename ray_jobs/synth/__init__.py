"""The synth job: renders a data set of synthetic faces. Open `job` first."""
