"""How good reconstructions are: identification, the metrics that papers print, captions' scores, held-out clusters.
Takes reconstructions and originals.
Gives tables with intervals over images, and per-image scores.
"""
