"""What people said of NSD's images: COCO's captions."""
import json
from pathlib import Path

from utils import cli, layout
from utils.errors import Problem
from utils.nsd import object_keys, text_tables

TABLE_LIMIT = 1 << 30  # bytes of a COCO annotation file


class Captions(dict):
    """{0-based 73k id: [caption, …]}. Asking for an image without captions raises Problem.

    empty: {0-based 73k id: empty captions that were left out}.
    """

    def __init__(self):
        super().__init__()
        self.empty = {}

    def __missing__(self, stimulus):
        if stimulus in self.empty:
            raise Problem(f"all {self.empty[stimulus]} captions of 73k id {stimulus} are empty",
                          "mend COCO's captions_*2017.json, or leave this stimulus out")
        raise Problem(f"there are no captions for 73k id {stimulus}",
                      "nsd_stim_info_merged.csv and COCO's captions_*2017.json must cover it")


def captions(root, workdir=None):
    """The captions of every image in nsd_stim_info_merged.csv that COCO has some for, without blanks around them.

    Empty ones are left out, counted, and said in one warning.
    COCO's files are read from below NSD's stimuli, or from `workdir`/annotations if they are there: NSD's bucket may
    not hold them.
    """
    name = root.name(object_keys.INFO_KEY)
    by_split, known = {}, set()
    for line, row in enumerate(text_tables.table(root.read(object_keys.INFO_KEY), ",", name), start=2):
        if not {"nsdId", "cocoId", "cocoSplit"} <= row.keys():
            raise Problem(f"{name} lacks one of the columns nsdId, cocoId, cocoSplit", object_keys.AGAIN)
        if row["cocoSplit"] not in ("train2017", "val2017"):
            raise Problem(f"line {line} of {name} has cocoSplit {row['cocoSplit']!r}",
                          "it must be train2017 or val2017")
        stimulus = text_tables.whole_number(row["nsdId"], f"nsdId in line {line} of {name}")
        if not 0 <= stimulus < object_keys.STIMULI:
            raise Problem(f"line {line} of {name} has nsdId {stimulus}",
                          f"it must be 0-based and below {object_keys.STIMULI}")
        if stimulus in known:
            raise Problem(f"line {line} of {name} has nsdId {stimulus} again", object_keys.AGAIN)
        known.add(stimulus)
        by_image = by_split.setdefault(row["cocoSplit"], {})
        by_image.setdefault(text_tables.whole_number(row["cocoId"], f"cocoId in line {line} of {name}"),
                            []).append(stimulus)
    found = Captions()
    for split, by_image in sorted(by_split.items()):
        for image, caption in _coco(root, split, workdir):
            for stimulus in by_image.get(image, ()):
                if caption:
                    found.setdefault(stimulus, []).append(caption)
                else:
                    found.empty[stimulus] = found.empty.get(stimulus, 0) + 1
    if found.empty:
        cli.say(f"warning: {sum(found.empty.values())} empty captions of {len(found.empty)} stimuli are left out "
                f"(the first is 73k id {min(found.empty)})")
    return found


def missing(root, workdir):
    """[Problem] of COCO's files that are neither below the root nor in the working folder."""
    found = []
    for split in ("train2017", "val2017"):
        key = object_keys.captions_key(split)
        local = _local(key, workdir)
        if not (local is not None and local.exists()) and not root.exists(key):
            found.append(_absent(root, key, local))
    return found


def _local(key, workdir):
    return layout.annotations(workdir) / Path(key).name if workdir is not None else None


def _absent(root, key, local):
    where = local or "annotations/ of the working folder"
    return Problem(f"{root.name(key)} does not exist",
                   f"unpack COCO's annotations_trainval2017.zip and put {Path(key).name} at {where}")


def _coco(root, split, workdir):
    """(COCO image id, caption) pairs, in the file's order."""
    key = object_keys.captions_key(split)
    local = _local(key, workdir)
    if local is not None and local.exists():
        if local.stat().st_size > TABLE_LIMIT:
            raise Problem(f"{local} has {local.stat().st_size:,} bytes", "COCO's caption files have less than 100 MB")
        name, content = local, local.read_bytes()
    elif root.exists(key):
        name, content = root.name(key), root.read(key, limit=TABLE_LIMIT)
    else:
        raise _absent(root, key, local)
    try:
        for annotation in json.loads(content)["annotations"]:
            if not isinstance(annotation["caption"], str):
                raise ValueError(f"the caption of image {annotation['image_id']} is no text")
            annotation["caption"].encode()  # JSON can hold half a character, which no file can
            yield int(annotation["image_id"]), annotation["caption"].strip()
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Problem(f"{name} is not a COCO caption file ({error})", "get it again") from error


def captions_of(found, stimuli):
    """[[caption, …] per stimulus] of 0-based 73k ids. Raises Problem for one without captions."""
    return [found[int(stimulus)] for stimulus in stimuli]
