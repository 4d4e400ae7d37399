"""The features of clips: what makes them comparable, and where they are kept.

In: clips, a backbone and a `FrameSpec`. Out: `ClipFeatures` (features [T, d] and times), from the store where they are
there already.

Open `clip_features` first; `store` is the Parquet store, keyed by the fingerprint of everything that changes a feature;
`maintenance` lists, verifies and cleans stores.
"""
