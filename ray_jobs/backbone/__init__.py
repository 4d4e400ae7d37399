"""The backbone job: lists, fetches and verifies the weights of backbones for real faces. Open `job` first."""
