"""The synthetic faces: a small world in which the true action-unit intensities of every frame are known.

Open `generate` first: it writes videos, true intensities and a manifest; `renderer` draws one face.

It exists so that the whole system runs, is tested and is measured without a data set that needs a licence agreement.
What it does not know: how real faces look. A result on these faces says that the machinery works, not that a person is
in pain.
"""
