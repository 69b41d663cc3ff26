"""From voxels to features: ridge decoders, factorised once for any number of targets.
Takes a subject's voxels and matrices of features.
Gives decoded features of the test stimuli, with the penalty and accuracy of each dim.
"""
