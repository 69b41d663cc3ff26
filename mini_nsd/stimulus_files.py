"""The pictures, their captions (nsddata_stimuli) and their ground truth."""
import json
import zlib

import h5py
import numpy as np

from mini_nsd import (
    brain_responses,
    experiment_files,
    occluded_viewing,
    scene_captions,
    scene_rendering,
    scene_sampling,
    scenes,
    world_sizes,
)
from utils import __version__
from utils.storage import text_files


def draw(index):
    """One stimulus, in a worker: its chunk of the HDF5 file, the small picture, visibilities, depth and annotation."""
    drawn = scene_sampling.sample(world_sizes.SEED, index)
    picture = scene_rendering.render(drawn, world_sizes.SIDE)
    nearest = ((np.arange(world_sizes.DEPTH_SIDE) + 0.5) * world_sizes.SIDE / world_sizes.DEPTH_SIDE).astype(int)
    depth = picture.depth[np.ix_(nearest, nearest)].astype(np.float16)
    return (zlib.compress(picture.image.tobytes(), 4), brain_responses.retina(picture.image[None])[0],
            brain_responses.visibility(picture), zlib.compress(depth.tobytes(), 4),
            occluded_viewing.annotation(drawn, picture))


def write_stimuli(root, plan, pool, advance):
    """nsd_stimuli.hdf5 and the true depth maps. Returns small pictures (n, …),
    the objects' visibilities and annotation."""
    pictures, visible, noted = [], [], {}
    stimuli = world_sizes.for_writing(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5")
    truth = world_sizes.for_writing(root / "simulated/depth.hdf5")
    with h5py.File(stimuli, "w") as images, h5py.File(truth, "w") as depths:
        bricks = images.create_dataset("imgBrick", (plan.count, world_sizes.SIDE, world_sizes.SIDE, 3), np.uint8,
                                       chunks=(1, world_sizes.SIDE, world_sizes.SIDE, 3),
                                       compression="gzip", compression_opts=4)
        maps = depths.create_dataset("depth", (plan.count, world_sizes.DEPTH_SIDE, world_sizes.DEPTH_SIDE), np.float16,
                                     chunks=(1, world_sizes.DEPTH_SIDE, world_sizes.DEPTH_SIDE), compression="gzip",
                                     compression_opts=4)
        maps.attrs["unit"] = "metres from the camera, larger is farther; SIMULATED, true by construction"
        for index, (image, small, seen, depth, objects) in enumerate(pool.map(draw, range(plan.count), chunksize=8)):
            # The workers have compressed the chunks; HDF5 would do it again in this process.
            bricks.id.write_direct_chunk((index, 0, 0, 0), image)
            maps.id.write_direct_chunk((index, 0, 0), depth)
            pictures.append(small)
            visible.append(seen)
            noted[index] = objects
            advance()
    return np.stack(pictures), visible, noted


def captions(index):
    """A stimulus's captions: five, or up to seven; some with stray blanks."""
    scene = scene_sampling.sample(world_sizes.SEED, index)
    said = scene_captions.captions(scene, world_sizes.CAPTIONS)
    said += scene_captions.captions(scene,
                                    world_sizes.MORE_CAPTIONS.get(index % 100,
                                                                  world_sizes.CAPTIONS))[world_sizes.CAPTIONS:]
    return [world_sizes.STRAY[n % len(world_sizes.STRAY)].format(caption)
            for n, caption in enumerate(said)] if index % 7 == 3 else said


def write_captions(root, plan):
    """captions_{train,val}2017.json in COCO's structure, five to seven captions an image."""
    ids, splits = experiment_files.coco_ids(plan)
    for split in ("train2017", "val2017"):
        here = np.flatnonzero(splits == split)
        images = [{"license": 1, "file_name": f"{ids[k]:012}.jpg", "coco_url": "", "height": world_sizes.SIDE,
                   "width": world_sizes.SIDE,
                   "date_captured": "", "flickr_url": "", "id": int(ids[k])} for k in here]
        annotations = [{"image_id": int(ids[k]), "id": int(max(world_sizes.MORE_CAPTIONS.values()) * k + n + 1),
                        "caption": caption}
                       for k in here for n, caption in enumerate(captions(int(k)))]
        content = {"info": {"description": "SIMULATED captions by mini_nsd, in COCO's structure", "url": "",
                            "version": __version__, "year": 2017, "contributor": "mini_nsd", "date_created": ""},
                   "licenses": [{"url": "", "id": 1, "name": "simulated, no rights reserved"}],
                   "images": images, "annotations": annotations}
        path = world_sizes.for_writing(root / f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json")
        text_files.write_text(path, json.dumps(content) + "\n")


def write_scenes(root, plan, visible):
    """simulated/scenes.json: what is in each stimulus, and how much of each object is in view."""
    content = [{"nsdId": index, "visible": np.round(visible[index], 4).tolist()}
               | scenes.describe(scene_sampling.sample(world_sizes.SEED, index)) for index in range(plan.count)]
    text_files.write_text(root / "simulated/scenes.json", json.dumps(content) + "\n")
