"""Occluders: masks that cover part of a picture, and sessions in which people saw covered pictures.
Takes pictures and seeds, or a lab's events and masks.
Gives occluded stimuli, and which trial showed which view.
"""
