"""From pictures to features: what every img2feat_* stage does around its network, and a subject's matrices of them.
Takes stimuli and a function from pictures to features.
Gives shards of features by stimulus, and matrices of a subject's training and test stimuli.
"""
