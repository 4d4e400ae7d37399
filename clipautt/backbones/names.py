"""How a backbone's name says where it comes from, known to settings without a library of models."""

HUB, FOLDER = "hf-hub:", "local-dir:"
"""What stands before the name of a hub repository or a local folder, as in open_clip."""
