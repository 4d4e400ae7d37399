"""Datasets: each module turns a layout on disk into a manifest, the table of clips that everything else reads."""
