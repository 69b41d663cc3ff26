"""Extract BLIP's visual embedding (226×768 at 240 px) of the stimuli, and BLIP's own captions of them.

Reads   nsd_stimuli.hdf5 (or nsd_stimuli_occluded.hdf5)
Writes  nsdfeat/blip/ (with --dataset occluded: blip_occluded), one HDF5 file per 256 stimuli;
        nsdfeat/blip_captions/captions.json (blip_captions_occluded), {73k id: [caption]}
"""
from pathlib import Path

from utils import cli, layout
from utils.features import extraction
from utils.generate import captioning
from utils.models import loading


def main(argv=None, dataset="nsd"):
    parser = cli.parser(__doc__, "python img2feat_blip.py --gpu 0")
    extraction.add_arguments(parser, dataset)
    extraction.add_store(parser)
    parser.add_argument("--outdir", type=Path, metavar="DIR",
                        help="folder of the embeddings (default: nsdfeat/blip or nsdfeat/blip_occluded); read it with "
                        "make_subjstim.py --input_dir or its twin's")
    captioning.add_prompt(parser)
    parser.add_argument("--skip_captions", action="store_true", help="extract the embeddings only")
    args = cli.parse(parser, argv)

    device = cli.device(args.gpu)
    dtype = loading.precision(args.precision, device)
    captioner = captioning.Captioner(*loading.blip(device, dtype), args.prompt)
    stimuli, attributes = extraction.open_stimuli(args)
    extraction.extract(
        args, stimuli, attributes | {"stored": args.store, "pixels": captioner.pixels}, "blip",
        layout.of_dataset("blip", args.dataset), dtype,
        lambda pixels, _: extraction.stored(captioner.embed(pixels), args.store),
        extraction.batch_size(args, device, extraction.AUTO_BATCH, lambda: captioner.embed(captioner.blank())),
        prepare=lambda ids: captioner.prepare(stimuli.read(ids)), folder=args.outdir,
    )
    if not args.skip_captions:
        captioning.caption_stimuli(args, extraction.wanted(args, stimuli), device)


if __name__ == "__main__":
    cli.run(main)
