"""Reconstruct the test images from decoded features with latent diffusion.

cvpr (= latent): the decoded latent is decoded to an image, which is noised to 0.8 of 50 DDIM steps and denoised with
guidance 5 under the decoded conditioning. A sample's noise depends on (seed, image, sample) alone.

Reads   decoded/{subject}/…_scores_{init_latent,c}.npy (with --true_features: nsdfeat/subjfeat/), nsd_stimuli.hdf5
Writes  decoded/image-{method}/{subject}/samples/{i}_org.png and {i}_{sample}.png, 512×512
"""
from utils import cli
from utils.generate import reconstruction


def main(argv=None, dataset="nsd"):
    parser = cli.parser(__doc__, "python diffusion_decoding.py --imgidx 0 10 --gpu 0 --subject subj01 --method cvpr")
    reconstruction.add_arguments(parser, dataset)
    reconstruction.reconstruct(cli.parse(parser, argv))


if __name__ == "__main__":
    cli.run(main)
