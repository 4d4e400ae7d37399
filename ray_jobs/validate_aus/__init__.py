"""The validate-aus job: compares AU similarities with human FACS coding. Open `job` first."""
