"""Extraction: clips into the feature store, on the connected Ray.

In: clips and an `ExtractionConfig`. Out: a `FeatureStore` with the features of every clip, or the reason why it has
none.

Open `extract` first; `pipeline` is the Ray Data stream from decoding tasks to encoding actors, `decode_stage` the
decoding.
"""
