"""The features of clips: how they are made, specified and stored.

In: clips, a backbone and a `FrameSpec`. Out: `ClipFeatures` (features [T, d] and times), from the store if it has them.

Open `clip_features` first; `store` is the Parquet store, keyed by the fingerprint of everything that changes a feature;
`maintenance` lists, verifies and cleans stores.
"""
