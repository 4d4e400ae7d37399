"""Prefixes of a backbone's name that say where it comes from; settings use them without importing open_clip."""

HUB, FOLDER = "hf-hub:", "local-dir:"
"""Prefixes of a hub repository and of a local folder, as in open_clip."""
