"""DPT: the hidden states that depth is decoded from, depth from hidden states, true or decoded.

docs/algorithms.md#depth has the numbers. Depth is the model's: relative and inverse, larger = nearer (Ranftl et al.,
2021), as SD2-depth was trained on.
"""
import numpy as np

from utils import batches, cli, images, layout, lazy
from utils.errors import Problem
from utils.features import extraction
from utils.models import checkpoints, loading
from utils.nsd import trials
from utils.ridge import decoded_features
from utils.storage import arrays, picture_files, provenance, writing

torch = lazy.module("torch")

PICTURE_SIZE = 512  # px: side of the pictures for the eye, as the original's
SIZE = 64  # px: side of the depth map that SD2-depth takes beside its 64×64 latents
NAMES = tuple(f"dpt_emb{number}" for number in range(4))
AUTO_BATCH = {"cuda": 64, "mps": 16, "cpu": 8}


class DepthEstimator:
    """The numerics around one DPT checkpoint (`loading.dpt`)."""

    def __init__(self, network, processor):
        config = network.config
        if network.backbone is not None or config.is_hybrid or len(config.backbone_out_indices) != len(NAMES):
            raise Problem(f"{checkpoints.source('dpt')} has no plain ViT with four output indices",
                          "use a DPT like Intel/dpt-large for the role dpt")
        self.network, self.processor, self.size = network, processor, config.image_size
        self.shape = (1 + (config.image_size // config.patch_size) ** 2, config.hidden_size)

    def prepare(self, stimuli):
        """(n, H, W, 3) uint8 → (n, 3, s, s) float32, for `hidden_states`."""
        return images.to_processor(stimuli, self.size, self.processor)

    def blank(self):
        """(1, 3, s, s) float32, a prepared picture of nothing: see memory.batch."""
        return torch.zeros(1, 3, self.size, self.size)

    @lazy.inference_mode
    def hidden_states(self, pixels):
        """(n, 3, s, s) → four (n, 1 + patches, width) float32, of the output indices (577×1024 for dpt-large)."""
        pixels = pixels.to(self.network.device, self.network.dtype)
        states = self.network.dpt(pixels, output_hidden_states=True).hidden_states[1:]  # the first is the embedding
        return [states[index].float() for index in sorted(self.network.config.backbone_out_indices)]

    @lazy.inference_mode
    def depth(self, hidden_states):
        """Four (n, 1 + patches, width) → (n, h, w) float32 relative depth, larger = nearer: the DPT's neck and head."""
        states = [state.to(self.network.device, self.network.dtype) for state in hidden_states]
        return self.network.head(self.network.neck(states)).float()


def normalise(depth, size=SIZE):
    """(n, h, w) relative depth → (n, 1, size, size) in [-1, 1] per image,
    as SD2-depth prepares its fifth channel at 64 px.

    A map without any relief, as badly decoded states can give, becomes 0 everywhere. Raises Problem for NaN or infinite
    depth, which is no map without relief.
    """
    if not torch.isfinite(depth).all():
        raise Problem("DPT returned NaN or infinite depth", "decode its hidden states again: ridge.py --overwrite")
    small = torch.nn.functional.interpolate(depth[:, None], (size, size), mode="bicubic", align_corners=False)
    low, high = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
    relief = high - low
    return torch.where(relief > 0, 2 * (small - low) / relief.clamp_min(torch.finfo(relief.dtype).tiny) - 1, 0)


def picture(depth):
    """(1, 1, h, w) in [-1, 1] → (h, w) uint8, nearer = brighter."""
    return np.rint((depth[0, 0] + 1) * 127.5).astype(np.uint8)


def correlation(one, other):
    """(n, …) depth maps, twice → (n,) Pearson correlation of each pair; NaN where a map has no relief."""
    a, b = (np.asarray(maps, np.float64).reshape(len(maps), -1) for maps in (one, other))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), norms, out=np.full(len(a), np.nan), where=norms > 0)


def add_arguments(parser, dataset):
    """The flags of dptemb2dpt.py."""
    decoded_features.add_arguments(parser, dataset)
    cli.add_imgidx(parser, "the test images")


def decode(args):
    """Write the missing depth maps of the test images, and print how they correlate with the true images' depth."""
    ws, device = layout.Workspace.of(args), cli.device(args.gpu)
    estimator = DepthEstimator(*loading.dpt(device, torch.float32))
    targets = [layout.of_dataset(name, args.dataset) for name in NAMES]
    states, paths = zip(*(decoded_features.read(args, ws, target, estimator.shape, checkpoints.identity("dpt"))
                          for target in targets))
    own = (args.dataset, decoded_features.suffix(args))
    wanted = provenance.record("dptemb2dpt.py", decoded_features.options(args), paths, **checkpoints.identity("dpt"))
    for image, more in ((False, {}), (True, {"side": PICTURE_SIZE})):
        provenance.claim_folder(ws.depth_folder(*own, image=image), wanted | more, args.overwrite)
    chosen = cli.image_range(args.imgidx, len(states[0]), "test image")
    size = extraction.batch_size(args, device, AUTO_BATCH,
                                 lambda: estimator.depth([torch.zeros(1, *estimator.shape)] * len(NAMES)))
    flat = 0
    with cli.progress(desc=ws.depth_folder(*own).name, total=len(chosen), unit="img") as bar:
        for batch in batches.aligned(chosen, len(states[0]), size):
            # A batch with any map missing is computed whole: a resumed run, and one of any --imgidx, gives what one
            # that made all at once would.
            with writing.working(ws.depth_folder(*own), batch.own.start, batch.own.stop):
                made = all(ws.depth(i, *own).exists() and ws.depth_image(i, *own).exists() for i in batch.own)
                if args.overwrite or not made:
                    rows = [torch.from_numpy(each[batch.filled]) for each in states]
                    found = estimator.depth(rows)
                    maps, pictures = (normalise(found, side)[batch.place].cpu().numpy()
                                      for side in (SIZE, PICTURE_SIZE))
                    flat += int((maps == 0).all((1, 2, 3)).sum())
                    for index, depth, large in zip(batch.own, maps[:, None], pictures[:, None]):
                        if args.overwrite or not ws.depth(index, *own).exists():
                            arrays.write_npy(ws.depth(index, *own), depth)
                        if args.overwrite or not ws.depth_image(index, *own).exists():
                            picture_files.save(ws.depth_image(index, *own), picture(large))
            bar.update(len(batch.own))
    if flat:
        cli.say(f"{flat} decoded depth maps have no relief: they carry no depth")
    print(f"{len(chosen)} depth maps in {ws.depth_folder(*own)}")
    if not args.true_features:
        report(args, ws, chosen, estimator, size)


def report(args, ws, chosen, estimator, size):
    """Print the correlation of the decoded depth with what DPT sees in the true (whole or occluded) images."""
    targets = [layout.of_dataset(name, args.dataset) for name in NAMES]
    true = [decoded_features.true(ws, target, checkpoints.identity("dpt"))[0] for target in targets]
    if len(true[0]) != len(trials.test_stimuli(ws)):
        raise Problem(f"{targets[0]} has {len(true[0])} test images, mrifeat {len(trials.test_stimuli(ws))}",
                      "run make_subjstim.py again with --overwrite")
    own = (args.dataset, decoded_features.suffix(args))
    found = []
    for start in range(0, len(chosen), size):
        batch = list(chosen[start:start + size])
        states = [torch.from_numpy(each[batch].astype(np.float32)).reshape(-1, *estimator.shape) for each in true]
        maps = np.concatenate([arrays.read_npy(ws.depth(index, *own)) for index in batch])
        found.append(correlation(maps, normalise(estimator.depth(states)).cpu().numpy()))
    found = np.concatenate(found)
    print(f"decoded depth against DPT's depth of the true images: r = {np.nanmean(found):.3f} "
          f"(median {np.nanmedian(found):.3f}, {np.isfinite(found).sum()} images)")
