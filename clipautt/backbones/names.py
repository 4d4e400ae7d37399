"""Prefixes of a backbone's name and suffixes of its weights; settings use them without importing open_clip."""

HUB, FOLDER = "hf-hub:", "local-dir:"
"""Prefixes of a hub repository and of a local folder, as in open_clip."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Suffixes of the files of weights that can be read."""
