"""Amodal completion, whether activity holds what an occluder hides: the index, its null, controls and pictures.
Takes sessions of occluded viewing, and decoders trained on whole images.
Gives an index per ROI with interval and p, close-ups of what is hidden, and figures (docs/amodal_completion.md).
"""
