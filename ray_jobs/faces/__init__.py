"""The faces job: shows what the face detector sees in a video. Open `job` first."""
