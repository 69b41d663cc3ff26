"""Extract the four hidden states of DPT (577×1024 each) that depth is decoded from, in one forward pass.

Reads   nsd_stimuli.hdf5 (or nsd_stimuli_occluded.hdf5)
Writes  nsdfeat/dpt_emb0/ … dpt_emb3/ (with --dataset occluded: …_occluded), one HDF5 file per 256 stimuli
"""
from utils import cli, layout
from utils.features import extraction
from utils.generate import depth_maps
from utils.models import loading


def main(argv=None, dataset="nsd"):
    parser = cli.parser(__doc__, "python img2feat_dpt.py --imgidx 0 73000 --gpu 0")
    extraction.add_arguments(parser, dataset)
    extraction.add_store(parser)
    args = cli.parse(parser, argv)

    device = cli.device(args.gpu)
    dtype = loading.precision(args.precision, device)
    estimator = depth_maps.DepthEstimator(*loading.dpt(device, dtype))
    stimuli, attributes = extraction.open_stimuli(args)
    extraction.extract_all(
        args, stimuli, attributes | {"stored": args.store}, "dpt",
        [layout.of_dataset(name, args.dataset) for name in depth_maps.NAMES], dtype,
        lambda pixels, _: [extraction.stored(states, args.store) for states in estimator.hidden_states(pixels)],
        extraction.batch_size(args, device, extraction.AUTO_BATCH, lambda: estimator.hidden_states(estimator.blank())),
        prepare=lambda ids: estimator.prepare(stimuli.read(ids)),
    )


if __name__ == "__main__":
    cli.run(main)
