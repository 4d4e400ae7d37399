"""Clips into the feature store, on the connected Ray.

In: clips and an `ExtractionConfig`. Out: a `FeatureStore` that holds every clip's features or the reason why not.

Open `extract` first; `pipeline` is the Ray Data stream from decoding tasks to encoding actors, `decode_stage` one task.
"""
