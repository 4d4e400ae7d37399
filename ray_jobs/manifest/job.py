"""Turn a data set as its owners ship it into a manifest, or check an existing manifest.

Prints how many clips and subjects each split has, all problems at once, and which videos are missing. The other jobs
take the same settings; this one lets you look first.

Example:
    clipautt manifest dataset=biovid root=/data/biovid
    clipautt manifest dataset=folder root=/data/ward7 'dataset.target_subjects=[p07,p12]' manifest=ward7.parquet
    clipautt manifest manifest=ward7.csv
"""

from __future__ import annotations

from omegaconf import DictConfig

from ray_jobs.platform.manifests import load_manifest, print_absent, print_counts


def main(cfg: DictConfig) -> int:
    """Run the job."""
    manifest = load_manifest(cfg)
    print_counts(manifest.counts(by="subject"))
    if cfg.dataset is None:
        print_counts(manifest.counts(by="split"))
    print_absent(manifest)
    return 0
