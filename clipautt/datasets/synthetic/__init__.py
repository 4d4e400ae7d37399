"""The synthetic faces: a small world in which the true action-unit intensities of every frame are known.

Open `generate` first: it writes videos, true intensities and a manifest; `renderer` draws one face.

It exists so that the whole system runs, is tested and is measured without a data set that needs a licence agreement.
The faces are drawings: a result on them says that the machinery works, not that a person is in pain.
"""
