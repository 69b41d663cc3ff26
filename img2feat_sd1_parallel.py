"""Extract the features that the CVPR method decodes: `init_latent` (VAE latent of the image)
and `c` (caption embedding).

No sampling loop runs: the latent is the VAE posterior's mean at 320 px, c the mean text embedding of the image's
captions.

Reads   nsd_stimuli.hdf5 (or nsd_stimuli_occluded.hdf5), NSD's COCO captions
Writes  nsdfeat/init_latent/ and nsdfeat/c/ (with --dataset occluded: …_occluded), one HDF5 file per 256 stimuli
"""
from utils import cli, layout
from utils.features import extraction
from utils.generate import diffusion
from utils.models import loading
from utils.nsd import coco_captions

PROBE = ["a caption"] * 5  # as many as an image of COCO has


def main(argv=None, dataset="nsd"):
    parser = cli.parser(__doc__, "python img2feat_sd1_parallel.py --imgidx 0 73000 --gpu 0")
    extraction.add_arguments(parser, dataset)
    parser.add_argument("--captions", choices=["coco", "blip"], default="coco",
                        help="caption by people (default), or by BLIP from the occluded image "
                        "(img2feat_blip_occlusion.py)")
    extraction.add_store(parser, default="float32")
    args = cli.parse(parser, argv)

    stimuli, attributes = extraction.open_stimuli(args)
    captions, origin = extraction.captions(args)
    # A missing caption is found out now, not after hours.
    coco_captions.captions_of(captions, extraction.wanted(args, stimuli))
    device = cli.device(args.gpu)
    dtype = loading.precision(args.precision, device)
    model = diffusion.LatentDiffusion(loading.stable_diffusion(device, dtype))
    batch = extraction.batch_size(args, device, extraction.AUTO_BATCH, lambda: model.caption_features([PROBE]),
                                  model.sliced_encode())
    stored = extraction.stored_otherwise(args)
    extraction.extract(
        args, stimuli, attributes | stored, "sd", layout.of_dataset("init_latent", args.dataset), dtype,
        lambda pixels, _: extraction.stored(model.encode(pixels), args.store), batch,
        prepare=lambda ids: model.prepare(stimuli.read(ids)),
    )
    extraction.extract(
        args, stimuli, origin | stored, "sd", layout.of_dataset("c", args.dataset), dtype,
        lambda texts, _: extraction.stored(model.caption_features(texts), args.store), batch,
        prepare=lambda ids: [captions[stimulus] for stimulus in ids],
    )


if __name__ == "__main__":
    cli.run(main)
