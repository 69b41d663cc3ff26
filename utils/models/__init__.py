"""Checkpoints: which files a role's network is loaded from, and the networks that no library has.
Takes a role (sd, blip, clip, vgg19, …) and NSD_MODELS.
Gives a network, whole and on its device, and what identifies it in records.
"""
