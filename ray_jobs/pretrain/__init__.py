"""The pretrain job: makes the weights of the embedded CLIP. Open `job` first."""
