"""Turns the features of an unseen subject into personalized predictions.

In: a `Source` (a checkpoint with its backbone), unlabelled clips, an `AdaptConfig`. Out: one `Prediction` per clip and
the adapted state of each subject. No shared object is modified.

Open `driver` first: `adapt` is the one loop for every method.
"""
