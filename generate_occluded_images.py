"""Cover part of every stimulus with an occluder.

Reads   nsd_stimuli.hdf5 (imgBrick); with --subject, what make_subjmri.py wrote
Writes  nsd_stimuli_occluded.hdf5: imgBrick and mask (True where hidden), stim_ids, and the occluder as attributes;
        or, with --h5_path and --outdir, one PNG an image: {73k id:06}.png

--occlusion_ratio R has one meaning for every occluder: R² of the image's AREA is hidden. For a rectangle that is R of
each SIDE (0.3: 9% of the area); 0.71 hides half the image. While it is written, the file needs its space twice.
With --subject it holds what these subjects saw; a later --subject adds to it. With --on_read it holds no images, only
what to hide: every stage that reads it occludes the whole images then, to the same pixels, and the disk is spared (5 GB
for a subject).
"""
from pathlib import Path

from utils import cli, layout
from utils.nsd import s3, stimulus_file, trials
from utils.occlusion import occluded_stimuli, occluders
from utils.storage import provenance


def main(argv=None):
    parser = cli.parser(__doc__, "python generate_occluded_images.py --input_path nsd_stimuli.hdf5 "
                        "--output_path nsd_stimuli_occluded.hdf5 --subject subj01")
    parser.add_argument("--input_path", type=Path,
                        help="default: NSD's, in a local NSD_ROOT or as img2feat_sd.py fetched it")
    parser.add_argument("--output_path", type=Path, help="default: nsd_stimuli_occluded.hdf5 in --workdir")
    cli.add_imgidx(parser, "stimuli")
    parser.add_argument("--subject", nargs="+", choices=layout.SUBJECTS, metavar="subjNN",
                        help="only the stimuli that these subjects saw (needs make_subjmri.py)")
    parser.add_argument("--h5_path", type=Path, help="older form, with --outdir: write PNGs of the images of this HDF5")
    parser.add_argument("--outdir", type=Path, help="older form: folder of the PNGs")
    parser.add_argument("--start", type=int, metavar="A", help="older form: first image (default: 0)")
    parser.add_argument("--end", type=int, metavar="B", help="older form: one past the last image (default: all)")
    parser.add_argument("--occluder", choices=occluders.KINDS, default="rectangle", help="default: rectangle")
    parser.add_argument("--occlusion_ratio", type=float, default=0.3, metavar="R",
                        help="share of each side of a rectangle; other occluders hide the same area, R² (default: 0.3)")
    parser.add_argument("--image_size", type=int, metavar="PX",
                        help="scale the image to PX×PX first, Lanczos (default: as it is, 425 for NSD's)")
    parser.add_argument("--place", choices=occluders.PLACES, default="centre",
                        help="centre, or random by --seed and the image's index (default: centre)")
    parser.add_argument("--fill", choices=occluders.FILLS, default="black",
                        help="mean: mean colour of what stays visible (default: black)")
    parser.add_argument("--on_read", action="store_true",
                        help="write what to hide, no images: each is occluded when it is read")
    cli.add_seed(parser)
    args = cli.parse(parser, argv)
    older = args.h5_path is not None or args.outdir is not None
    if older and (args.h5_path is None or args.outdir is None):
        parser.error("--h5_path and --outdir go together")
    if older and (args.input_path or args.output_path or args.imgidx or args.subject or args.on_read):
        parser.error("--h5_path/--outdir/--start/--end and --input_path/--output_path/--imgidx/--subject/--on_read are "
                     "two forms: use one")
    if not older and (args.start is not None or args.end is not None):
        parser.error("--start and --end go with --h5_path and --outdir; use --imgidx A B")
    if args.start is not None and args.start < 0:
        parser.error("--start must not be negative")
    if not 0 < args.occlusion_ratio <= 1:
        parser.error("--occlusion_ratio must be above 0 and at most 1")
    if args.image_size is not None and not 1 <= args.image_size <= occluded_stimuli.LARGEST:
        parser.error(f"--image_size must be 1 to {occluded_stimuli.LARGEST}")

    options = {"kind": args.occluder, "ratio": args.occlusion_ratio, "place": args.place, "fill": args.fill,
               "seed": args.seed, "image_size": args.image_size}
    source = args.h5_path or args.input_path or stimulus_file.stimuli_path(s3.Root.from_env(), args.workdir)
    with stimulus_file.Stimuli(source) as stimuli:
        wanted = provenance.record("generate_occluded_images.py", options, input=occluded_stimuli.fingerprint(stimuli))
        if older:
            asked = None if (args.start, args.end) == (None, None) else [
                args.start or 0, stimuli.stop if args.end is None else args.end]
            ids = stimuli.among(cli.image_range(asked, stimuli.stop))
            with cli.progress(total=len(ids), desc="occluding", unit="image") as bar:
                made = occluded_stimuli.write_pngs(stimuli, ids, args.outdir, wanted, args.overwrite, bar.update)
            print(f"{args.outdir}: {made} images written, {len(ids) - made} were there")
        else:
            path = args.output_path or layout.occluded_stimuli(args.workdir)
            chosen = cli.image_range(args.imgidx, stimuli.stop)
            wanted["images"] = [chosen.start, chosen.stop]
            subjects, grows = occluded_stimuli.subjects_to_hold(path, args.subject, wanted)
            seen = [layout.Workspace(args.workdir, subject) for subject in subjects or ()]
            ids = trials.seen(seen, chosen) if seen else stimuli.among(chosen)
            wanted |= provenance.record(wanted["made_by"], options,
                                        [ws.stims_ave for ws in seen]) | {"subjects": subjects}
            if args.on_read:
                made = occluded_stimuli.write_recipe(stimuli, ids, path, wanted | {"on_read": True},
                                                     args.overwrite or grows)
            else:
                with cli.progress(total=len(ids), desc="occluding", unit="image") as bar:
                    made = occluded_stimuli.write_hdf5(stimuli, ids, path, wanted, args.overwrite or grows, bar.update)
            print(f"{path}: {len(ids)} images" + ("" if made else " (were there)"))


if __name__ == "__main__":
    cli.run(main)
