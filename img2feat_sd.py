"""Fetch NSD's images once, resumable, and check them. A local NSD_ROOT is used in place.

Reads   NSD_ROOT: nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5 (39.6 GB)
Writes  nsd_stimuli.hdf5 in the working folder, unless NSD_ROOT is local
"""
from utils import cli, layout
from utils.nsd import object_keys, s3, stimulus_file


def main(argv=None):
    args = cli.parse(cli.parser(__doc__, "python img2feat_sd.py"), argv)

    root = s3.Root.from_env()
    path = root.fetch(object_keys.STIMULI_KEY, layout.stimuli(args.workdir), args.overwrite)
    with stimulus_file.Stimuli(path) as stimuli:
        stimuli.check()
        print(f"{path}{' (used in place)' if root.local else ''}: "
              f"{stimuli.count} images, {stimuli.shape[1]}×{stimuli.shape[2]} px RGB, uint8")


if __name__ == "__main__":
    cli.run(main)
