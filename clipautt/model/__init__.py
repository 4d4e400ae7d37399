"""CLIP-AU: the network, its training, and the checkpoint that carries it.

In: features of labelled clips of source subjects. Out: a `Checkpoint` with its classes, prompts, backbone and the
specification of the features it was trained on.

Open `network` first (section 2 of the paper in one class); `windows` cuts videos and embeds all windows in one pass,
`training` fits, `checkpoint` saves, finds and loads, `published` imports checkpoints of the paper's own code.
"""
