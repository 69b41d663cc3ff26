"""From decoded features to pictures, captions and depth maps: diffusion, GAN inversion, BLIP, DPT.
Takes decoded (or true) features of the test stimuli, and networks.
Gives reconstructions, a seed and an index deciding each one's noise.
"""
