"""Does activity hold what an occluder hides? The completion index, its null, its controls and its pictures.
Takes sessions of occluded viewing, and decoders trained on whole images.
Gives an index per ROI with interval and p, close-ups of what is hidden, and figures (docs/amodal_completion.md).
"""
