"""One module per adaptation method.

In: a `Session` (the parts of the source model that the method asked for) and the clips of a subject. Out: a
`ClipOutput` per clip and the adapted state.

Open `zero_shot` first: the shortest one. `clip_autt` is CLIP-AUTT with its objectives and its tuner; `tda` and `t3a`
are training-free. A new method is one module here, one YAML in `conf/adapt` and one test.
"""
