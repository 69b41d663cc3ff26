"""The Natural Scenes Dataset: its files on S3 or in a folder, its formats, a subject's trials and betas by ROI.
Takes NSD_ROOT and a subject.
Gives stimuli, captions, (z, y, x) volumes, and the voxels of each trial; stimuli are 0-based 73k ids.
"""
