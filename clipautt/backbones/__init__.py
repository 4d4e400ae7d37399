"""Frames and prompts into features of a frozen CLIP.

In: the name and weights of a model, frames [N, 3, H, W], prompts. Out: image features [N, d], text features [K, d], and
a fingerprint that names the weights and the preprocessing.

Open `loading` first: `load_backbone` chooses between `embedded` (ships with the package) and `open_clip_models`.
`frozen_clip` is what both return; `packed_tower` reads prompts at their real length and `frozen_linear` multiplies with
frozen weights so that a row does not depend on its batch. `pretraining` makes the embedded weights.
"""
