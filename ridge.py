"""Fit ridge decoders from voxels to image features, and predict the test images' features.

Several --target share one factorisation of the voxels. Test images are predicted from their trial-averaged activity.

Reads   mrifeat/{subject}/…_betas_*.npy, nsdfeat/subjfeat/{subject}_{use_stim}_{target}.h5
Writes  decoded/{subject}/{subject}_{rois}_scores_{target}.npy (test stimuli × dims) and .json
"""
from utils import cli
from utils.generate import gan_inversion
from utils.ridge import fit_targets


def main(argv=None, dataset="original"):
    parser = cli.parser(__doc__, "python ridge.py --target c --roi ventral --subject subj01")
    fit_targets.add_arguments(parser, dataset)
    fit_targets.decode(cli.parse(parser, argv), streamed=gan_inversion.Streamed)


if __name__ == "__main__":
    cli.run(main)
