"""The order of the stages, and the command of each."""
from utils import layout
from utils.generate import depth_maps, gan_inversion, reconstruction
from utils.ridge import decoded_features

# What each script is of: `graph`, `status` and `costs` have a function for each kind.
KIND = {
    "make_subjmri.py": "mri", "img2feat_sd.py": "stimuli", "generate_occluded_images.py": "occluded",
    "img2feat_sd1_parallel.py": "sd", "img2feat_sd1_occlusion.py": "sd",
    "img2feat_blip.py": "blip", "img2feat_blip_occlusion.py": "blip",
    "make_vgg19bdpy.py": "vgg19", "make_vgg19bdpy_occlusion.py": "vgg19", "img2feat_dpt.py": "dpt",
    "make_subjstim.py": "pair", "make_subjstim_occluded.py": "pair", "make_subjstim_vgg19.py": "pair_vgg19",
    "ridge.py": "ridge", "ridge_occlusion.py": "ridge",
    "decode_captions.py": "captions", "decode_captions_occluded.py": "captions",
    "make_vgg19fromdecode.py": "mat", "recon_icnn_image_vgg19_dgn_relu7gen_gd.py": "gan", "dptemb2dpt.py": "depth",
    "diffusion_decoding.py": "images", "diffusion_decoding_occluded.py": "images",
    "img2feat_decoded.py": "features", "img2feat_decoded_occlusion.py": "features",
    "identification.py": "identification", "identification_occluded.py": "identification",
    "amodal_completion.py": "completion", "evaluate.py": "evaluation", "make_figures.py": "figures",
    "make_report.py": "report",
}
HELD_OUT_CLUSTERS = 3
INPAINTED, RECONSTRUCTED = 12, 8                # views, of amodal_completion.py
# What each method needs beside the cvpr method's features, in order; a method needs what the ones before it need.
NEEDS = {"cvpr": ["sd"], "text": ["sd", "captions"], "gan": ["captions", "gan"], "depth": ["captions", "gan", "depth"]}


def plan(args):
    """The commands, each a list of strings, that produce what the arguments of run_pipeline.py ask for."""
    common = ["--workdir", str(args.workdir)] + (["--overwrite"] if args.overwrite else []) \
        + (["--debug"] if args.debug else [])
    steps = [["make_subjmri.py", "--subject", args.subject], ["img2feat_sd.py", "--subject", args.subject]]
    if "occluded" in args.datasets:
        steps.append(["generate_occluded_images.py", "--subject", args.subject, "--seed", str(args.seed),
                      *(["--on_read"] if args.occlude_on_read else [])])
    needs = {need for method in args.methods for need in NEEDS[method]} | ({"sd"} if args.controls else set())
    for dataset in args.datasets:
        named = Commands(args, dataset)
        for need, commands in (("sd", named.sd), ("captions", named.captions), ("gan", named.gan),
                               ("depth", named.depth)):
            if need in needs:
                steps += commands()
        for method in args.methods:
            steps += named.evaluated("--method", method)
    if args.controls:
        named, shuffled = Commands(args, "nsd"), ("--shuffle_trials", str(layout.CONTROL_SEED))
        for target, roi in reconstruction.ROI_OF.items():
            steps.append(named.fit([target], [roi]) + [*shuffled])
        for control in (("--true_features",), shuffled):
            steps += named.evaluated("--method", "cvpr", *control)
    named = Commands(args, "nsd")
    if args.by_roi:
        steps += [named.fit([*reconstruction.ROI_OF], [roi]) for roi in layout.ROIS]
    if args.completion:
        steps.append(named.completion())
    steps += named.gathered()
    return [step + common for step in steps if step[0] not in args.skip]


class Commands:
    """The stages of one dataset, whole or occluded, as commands."""

    def __init__(self, args, dataset):
        self.args, self.dataset, self.occluded = args, dataset, dataset == "occluded"
        self.subject, self.gpu = ["--subject", args.subject], ["--gpu", str(args.gpu)]
        self.network = self.gpu + ([] if args.batch_size is None else ["--batch_size", str(args.batch_size)])
        self.revision = ["--revision", *args.revision] if args.revision else []
        self.published = self.network + self.revision  # of scripts that load a checkpoint of the hub
        self.store = ["--store", args.store] if args.store else []
        self.prompt = ["--prompt", args.prompt] if args.prompt else []
        self.images = ["--imgidx", *map(str, args.imgidx)] if args.imgidx else []
        self.flag = ["--dataset", "occluded"] if self.occluded else []

    def _script(self, whole, twin):
        return twin if self.occluded else whole

    def _names(self, features):
        return [layout.of_dataset(feature, self.dataset) for feature in features]

    def given(self, *names):
        """Those of the flags that have a value, as words of a command."""
        return [word for name in names if getattr(self.args, name) is not None
                for word in (f"--{name}", str(getattr(self.args, name)))]

    def extract(self, whole, twin, *flags):
        return [self._script(whole, twin), *self.subject, *self.published, *flags]

    def pair(self, feature, use_stim):
        script = self._script("make_subjstim.py", "make_subjstim_occluded.py")
        return [script, "--featname", *self._names([feature]), "--use_stim", use_stim, *self.subject]

    def fit(self, targets, rois):
        script = self._script("ridge.py", "ridge_occlusion.py")
        return [script, *self.subject, *self.gpu, "--target", *self._names(targets), "--roi", *rois]

    def sd(self):
        """Extract and decode the features of the cvpr method."""
        targets = reconstruction.ROI_OF
        return [self.extract("img2feat_sd1_parallel.py", "img2feat_sd1_occlusion.py", *self.store),
                *(self.pair(target, "each") for target in targets),
                *(self.fit([target], [roi]) for target, roi in targets.items())]

    def captions(self):
        """Decode BLIP's embedding, and caption the test images from it."""
        return [self.extract("img2feat_blip.py", "img2feat_blip_occlusion.py", "--skip_captions", *self.prompt),
                self.pair("blip", "ave"), self.fit(["blip"], decoded_features.ROIS),
                [self._script("decode_captions.py", "decode_captions_occluded.py"), *self.subject, *self.published,
                 *self.prompt]]

    def gan(self):
        """Decode VGG19's layers, and invert them to an image."""
        return [[self._script("make_vgg19bdpy.py", "make_vgg19bdpy_occlusion.py"), *self.subject, *self.network],
                ["make_subjstim_vgg19.py", "--layer", "all", *self.subject, *self.flag],
                self.fit(gan_inversion.LAYERS, decoded_features.ROIS),
                ["make_vgg19fromdecode.py", *self.subject, *self.flag],
                ["recon_icnn_image_vgg19_dgn_relu7gen_gd.py", *self.subject, *self.network, *self.flag, *self.images,
                 "--seed", str(self.args.seed), *self.given("n_iter", "learning_rate")]]

    def depth(self):
        """Decode DPT's hidden states, and turn them into depth maps."""
        return [["img2feat_dpt.py", *self.subject, *self.published, *self.flag],
                *(self.pair(name, "ave") for name in depth_maps.NAMES),
                self.fit(depth_maps.NAMES, decoded_features.ROIS),
                *(["dptemb2dpt.py", *self.subject, *self.published, *self.flag, *self.images, *true]
                  for true in ([], ["--true_features"]))]

    def completion(self):
        """Ask sessions of occluded viewing whether the brain completes."""
        return ["amodal_completion.py", *self.subject, *self.gpu, *self.revision, "--seed", str(self.args.seed),
                "--inpaint", str(INPAINTED), "--reconstruct", str(RECONSTRUCTED), *self.given("steps", "scheduler")]

    def gathered(self):
        """Tables, figures and the page over all that is there."""
        clusters = ["--held_out_clusters", str(HELD_OUT_CLUSTERS)] if self.args.controls else []
        return [["evaluate.py", *self.subject, *self.gpu, *self.revision, "--seed", str(self.args.seed), *clusters],
                ["make_figures.py", *self.subject], ["make_report.py", *self.subject]]

    def evaluated(self, *run):
        """Reconstruct, extract the evaluation's features, and identify."""
        sampling = ["--seed", str(self.args.seed), *self.images,
                    *self.given("n_samples", "steps", "scheduler", "size", "start", "guided_below")]
        return [
            self.extract("diffusion_decoding.py", "diffusion_decoding_occluded.py", *run, *sampling),
            self.extract("img2feat_decoded.py", "img2feat_decoded_occlusion.py", *run, *self.images, "--usefeat",
                         *self.args.usefeat),
            [self._script("identification.py", "identification_occluded.py"), *self.subject, *run,
             "--usefeat", *self.args.usefeat]]
