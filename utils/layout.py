"""Where every artifact lives, and its name. No other file spells a path (docs/artifacts.md)."""
import re
from dataclasses import dataclass
from pathlib import Path

SUBJECTS = tuple(f"subj{number:02}" for number in range(1, 9))
ROIS = ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal")
DATASETS = ("nsd", "occluded")
METHODS = ("cvpr", "text", "gan", "depth")
CONTROL_SEED = 0  # of --shuffle_trials, in the pipeline's control
HIDDEN_FEATURES = ("clip_h6", "clip_h12")  # seven times the size of all others together: only when asked
USUAL_FEATURES = ("inception", "alexnet5", "alexnet12", "alexnet18", "clip")
EVALUATION_FEATURES = USUAL_FEATURES + HIDDEN_FEATURES
VGG19_LAYERS = tuple(
    f"conv{block}_{index}" for block, count in enumerate((2, 2, 4, 4, 4), start=1) for index in range(1, count + 1)
) + ("fc6", "fc7", "fc8")


@dataclass(frozen=True)
class VoxelChoice:
    """Which voxels of a ROI, and scaled how; part of every name below mrifeat/ that depends on it.

    atlas: the label volume. zscore: None or "session". ncsnr_min: None or the least noise-ceiling SNR.
    """

    atlas: str = "streams"
    zscore: str | None = None
    ncsnr_min: float | None = None

    @classmethod
    def of(cls, args):
        return cls(args.atlas, args.zscore, args.ncsnr_min)

    def tag(self, roi):
        """The ROI's name in file names: `early`, or for instance `HCP_MMP1.V1-zsession-ncsnr0.2`."""
        name = roi if self.atlas == "streams" else f"{self.atlas}.{roi}"
        name += f"-z{self.zscore}" if self.zscore else ""
        return name + (f"-ncsnr{self.ncsnr_min:g}" if self.ncsnr_min is not None else "")


@dataclass(frozen=True)
class Workspace:
    """One subject's artifacts below a working folder. Paths are built here and nowhere else."""

    workdir: Path
    subject: str
    decoded_dir: Path | None = None  # in place of decoded/ in the working folder

    @classmethod
    def of(cls, args):
        return cls(Path(args.workdir), args.subject)

    # mrifeat: the subject's trials and voxels

    @property
    def mrifeat(self):
        return self.workdir / "mrifeat" / self.subject

    @property
    def stims(self):
        """(trials,) int64: 0-based 73k id of each trial, scan order."""
        return self.mrifeat / f"{self.subject}_stims.npy"

    @property
    def stims_ave(self):
        """(stimuli,) int64: unique ids in order of first presentation."""
        return self.mrifeat / f"{self.subject}_stims_ave.npy"

    @property
    def stims_ave_test(self):
        """(stimuli,) bool, aligned with stims_ave: True where the stimulus is shared, that is a test stimulus."""
        return self.mrifeat / f"{self.subject}_stims_ave_test.npy"

    def train_index(self, average=False):
        """(trials,) or with average (stimuli,) float64, aligned with stims or stims_ave:
        1 where it trains, 0 where it tests.

        The original pipeline's file, whose one name holds whichever of the two was asked for last.
        """
        return self.mrifeat / f"{self.subject}_stims{'_ave' if average else ''}_tridx.npy"

    def betas(self, roi_tag, split, average=False):
        """(trials, voxels) int16, or with average (stimuli, voxels) float32. split: "tr" or "te"."""
        return self.mrifeat / f"{self.subject}_{roi_tag}_betas_{'ave_' if average else ''}{split}.npy"

    def betas_parts(self, choice):
        """Folder of what an unfinished make_subjmri.py has so far."""
        return self.mrifeat / f".{self.subject}_{choice.tag('betas')}_parts"

    # nsdfeat/subjfeat: the features of the stimuli that the subject saw

    def subject_features(self, use_stim, feature):
        return self.workdir / "nsdfeat" / "subjfeat" / f"{self.subject}_{use_stim}_{feature}.h5"

    def found_subject_features(self, feature, first="ave"):
        """The subject matrix that is there, that of `first` before the other use's; that of `first` if neither is."""
        paths = [self.subject_features(use, feature) for use in (first, "each" if first == "ave" else "ave")]
        return next((path for path in paths if path.exists()), paths[0])

    def subject_features_npy(self, use_stim, feature, split):
        """The original pipeline's matrix, written on request (--npy)."""
        return self.workdir / "nsdfeat" / "subjfeat" / f"{self.subject}_{use_stim}_{feature}_{split}.npy"

    # decoded: what ridge and the generators make of brain activity

    @property
    def decoded(self):
        return (self.decoded_dir or self.workdir / "decoded") / self.subject

    def scores(self, roi_tags, target, dataset=None, control=None):
        """(test stimuli, dims) float32. dataset: None for ridge.py, else appended as ridge_occlusion.py does.

        control: for instance "shuffled7", so that a control can never be read as a result.
        """
        name = f"{self.subject}_{'_'.join(roi_tags)}_scores_{target}"
        name += f"_{dataset}" if dataset else ""
        return self.decoded / (name + (f"_{control}" if control else "") + ".npy")

    def captions(self, target=None, dataset=None, control=None):
        """A caption per test image and line. target and dataset name those of occluded images."""
        suffix = f"_{target}_{dataset}" if target else ""
        return self.decoded / "captions" / (f"captions_brain{suffix}" + (f"_{control}" if control else "") + ".csv")

    def captions_people(self):
        """The first caption that people gave each test image, to show beside a decoded one."""
        return self.decoded / "captions" / "captions_people.csv"

    def depth_folder(self, dataset="nsd", control=None, image=False):
        """Folder of the decoded depth maps, or of the pictures of them."""
        name = of_dataset("dpt_fromemb_image" if image else "dpt_fromemb", dataset)
        return self.decoded / (name + (f"_{control}" if control else ""))

    def depth(self, index, dataset="nsd", control=None):
        """(1, 1, 64, 64) float32 in [-1, 1], larger = nearer."""
        return self.depth_folder(dataset, control) / f"{index:06}.npy"

    def depth_image(self, index, dataset="nsd", control=None):
        return self.depth_folder(dataset, control, image=True) / f"{index:06}.png"

    def gan_features(self, layer, index, dataset="nsd", control=None):
        """Decoded features of one VGG19 layer and test image, for the inversion;
        key `feat`, (1, C, H, W) or (1, units)."""
        return self._gan("gan_mod", layer, dataset, control) / f"VGG19-{layer}-{self.subject}-streams-{index:06}.mat"

    def gan_image(self, index, dataset="nsd", control=None):
        """The picture that the inversion makes of a test image's decoded features."""
        return (self._gan("gan_recon_img", "all_layers", dataset, control)
                / f"recon_image_normalized-VGG19-fc8-{self.subject}-streams-{index:06}.tiff")

    def gan_pixels(self, index, dataset="nsd", control=None):
        """The same as numbers: key `recon_image`, (h, w, 3) float32 RGB before its levels are set,
        and `recon_image_norm`."""
        return (self._gan("gan_recon_img", "all_layers", dataset, control)
                / f"recon_image-VGG19-fc8-{self.subject}-streams-{index:06}.mat")

    def _gan(self, kind, layer, dataset, control):
        name = of_dataset(kind, dataset) + (f"_{control}" if control else "")
        return self.workdir / "decoded" / name / layer / self.subject / "streams"

    def samples(self, run):
        """Folder of a run's images. run: see `run_name`."""
        return self.workdir / "decoded" / f"image-{run}" / self.subject / "samples"

    # identification: features of the reconstructions, and how well they tell the images apart

    def identification(self, run):
        return self.workdir / "identification" / run.replace("-occluded", "_occluded") / self.subject

    def per_image_scores(self, run, feature):
        """CSV, a row per image; and the JSON beside it."""
        return (self.workdir / "scores"
                / f"per_image_scores_{self.subject}_{run.replace('-occluded', '_occluded')}_{feature}.csv")

    def found_per_image_score(self, run, feature):
        """The scores that are there: in scores/, or else where they once were written, the working folder itself."""
        path = self.per_image_scores(run, feature)
        before = self.workdir / path.name
        return before if before.exists() and not path.exists() else path

    def found_scores(self):
        """Sidecars of the decoded features that are there, in order of name."""
        return sorted(self.decoded.glob(f"{self.subject}_*_scores_*.json"))

    def found_per_image_scores(self):
        """Sidecars of the identification results that are there, in order of name;
        those in scores/ before older ones."""
        found = {path.name: path for folder in (self.workdir, self.workdir / "scores")
                 for path in folder.glob(f"per_image_scores_{self.subject}_*.json")}
        return [found[name] for name in sorted(found)]

    def found_runs(self):
        """Names of the runs (see `run_name`) that left a samples folder, in order of name."""
        folders = self.workdir.glob(f"decoded/image-*/{self.subject}/samples")
        return sorted(folder.parts[-3].removeprefix("image-") for folder in folders)

    # evaluate: the table that papers print, and the checks behind it

    @property
    def evaluation(self):
        """Folder of evaluate.py's results."""
        return self.workdir / "evaluation" / self.subject

    def evaluation_result(self, name, ending):
        """name: "evaluation" (csv, md and json), "held_out" or "captions" (csv and json)."""
        return self.evaluation / f"{self.subject}_{name}.{ending}"

    def evaluation_per_image(self, run):
        """CSV, a row per image of one run and a column per metric; and the JSON beside it."""
        return self.evaluation / "per_image" / f"{self.subject}_{run}.csv"

    def found_captions(self):
        """[(path, target, dataset, control or None)] of the decoded captions that are there, in order of name."""
        name = re.compile(r"captions_brain(?:_(.+?)_(nsd|occluded))?(?:_(true_features|shuffled[0-9]+))?")
        found = [(path, name.fullmatch(path.stem)) for path in sorted((self.decoded / "captions").glob("*.csv"))]
        return [(path, match[1] or "blip", match[2] or "nsd", match[3]) for path, match in found if match]

    # amodal_completion: is what an occluder hides in the activity?

    @property
    def completion(self):
        """Folder of amodal_completion.py's results."""
        return self.workdir / "amodal_completion" / self.subject

    def completion_result(self, name, ending):
        """name: "index" (csv and json), "margins", "patterns" or "closeness" (csv), "decoded" (h5), "completion_index",
        "closeness" or "closeups" (png and pdf)."""
        return self.completion / f"{self.subject}_{name}.{ending}"

    @property
    def closeups(self):
        """Folder of the pictures of single views; its manifest says which views they are."""
        return self.completion / "closeups"

    def closeup(self, view, stimulus, what):
        """view: number of the view among the subject's. what: see `closeups.PICTURES`."""
        return self.closeups / f"{view:04}_{stimulus:06}_{what}.png"

    def figure(self, name, ending):
        """ending: "pdf" or "png"."""
        return self.workdir / "figures" / f"{name}_{self.subject}.{ending}"

    # report: everything above on one page

    @property
    def report(self):
        """The one self-contained page that make_report.py writes;
        `page.json` beside it says what it was made from."""
        return self.workdir / "report" / self.subject / "report.html"

    def found_records(self):
        """The JSON files that say what made decoded features, captions, reconstructions and completion,
        in order of name."""
        found = [manifest(self.samples(run)) for run in self.found_runs()]
        found += [*self.found_scores(), *self.decoded.glob("captions/*.json"),
                  *self.completion.glob(f"{self.subject}_*.json")]
        found.append(self.evaluation_result("evaluation", "json"))
        return sorted(path for path in found if path.exists())

    def found_networks(self):
        """The records of the networks that judged each run's pictures, in order of name."""
        return sorted(self.workdir.glob(f"identification/*/{self.subject}/networks/manifest.json"))


def run_name(method, dataset="nsd", *, true_features=False, conditioning="zc", control=None):
    """The name that keeps a run's images apart from every other run's: `cvpr`, `cvpr-occluded`, `cvpr-true_features` …

    `latent` and `cvpr` are one method. true_features marks the recovery check, whose inputs are the true features;
    conditioning is the paper's ablation (zc, z or c); control is for instance "shuffled7".
    """
    name = "cvpr" if method == "latent" else method
    name += "-occluded" if dataset == "occluded" else ""
    name += "" if conditioning == "zc" else f"-only_{conditioning}"
    name += "-true_features" if true_features else ""
    return name + (f"-{control}" if control else "")


def original_image(folder, index):
    return folder / f"{index:05}_org.png"


def occluded_image(folder, index):
    return folder / f"{index:05}_occ.png"


def sample_image(folder, index, repeat):
    return folder / f"{index:05}_{repeat:03}.png"


def image_stem(image, what):
    """The name of a picture without its ending: `00003_org` or `00003_002`. what: "org" or the repeat."""
    return (original_image(Path(), image) if what == "org" else sample_image(Path(), image, what)).stem


def image_features(folder, feature):
    """One feature of all pictures of a run, in its identification folder."""
    return folder / f"{feature}.h5"


def image_features_parts(folder):
    """Folder of what an unfinished img2feat_decoded.py has so far."""
    return parts(folder / "features.h5")


def image_features_part(folder, number):
    return image_features_parts(folder) / f"{number:06}.h5"


def image_feature(folder, image_stem, feature):
    """The original pipeline's file of one picture's feature; image_stem is `00003_org` or `00003_002`."""
    return folder / f"{image_stem}_{feature}.npy"


def files_of_image_feature(folder, feature):
    """All files of one feature in an identification folder, of either form."""
    return [path for path in (image_features(folder, feature), *(
        each for paths in found_image_features(folder, feature).values() for each in paths.values())) if path.exists()]


def identification_files(folder):
    """The artifacts in an identification folder, finished or not."""
    unfinished = image_features_parts(folder)
    return plain_files(folder) + (plain_files(unfinished) if unfinished.exists() else [])


def found_images(folder):
    """{image: {"org" | "occ" | repeat: path}} of the images in a samples folder."""
    return _found(folder, ".png")


def found_image_features(folder, feature):
    """{image: {"org" | repeat: path}} of one feature in an identification folder, in the original pipeline's form."""
    return _found(folder, f"_{feature}.npy")


def _found(folder, ending):
    name = re.compile(r"([0-9]{5,})_(org|occ|[0-9]{3,})" + re.escape(ending))
    images = {}
    for path in sorted(Path(folder).glob(f"*{ending}")):
        match = name.fullmatch(path.name)
        if match:
            what = match[2] if match[2] in ("org", "occ") else int(match[2])
            images.setdefault(int(match[1]), {})[what] = path
    return dict(sorted(images.items()))


def demo(folder=None):
    """(NSD_ROOT, working folder) of the simulated subject in the folder of `make demo` (default: the repository's)."""
    folder = Path(__file__).resolve().parent.parent / "demo" if folder is None else Path(folder)
    return folder / "world", folder / "work"


def stimuli(workdir):
    """The cached copy of NSD's nsd_stimuli.hdf5."""
    return Path(workdir) / "nsd_stimuli.hdf5"


def annotations(workdir):
    """Folder for COCO's caption files, where NSD_ROOT does not hold them."""
    return Path(workdir) / "annotations"


def occluded_stimuli(workdir):
    return Path(workdir) / "nsd_stimuli_occluded.hdf5"


def occluded_viewing_copy(workdir, key):
    """Where the copy of a file of the occluded viewing's stimuli lies."""
    return Path(workdir) / Path(key)


def stimulus_image(folder, stimulus):
    """One stimulus as an image file, in a folder of the user's choice."""
    return Path(folder) / f"{stimulus:06}.png"


def found_stimulus_images(folder):
    """Those that `stimulus_image` names, and the JPEGs that the published pipeline for occluded images writes."""
    return sorted(path for ending in ("png", "jpg", "jpeg") for path in Path(folder).glob("[0-9]" * 6 + f".{ending}"))


def fetched(path):
    """What has arrived so far of a file that is being fetched."""
    return Path(path).with_name(Path(path).name + ".part")


def parts(path):
    """Folder of the finished parts of a large file that is being written; gone when it is whole."""
    return Path(path).with_name(f".{Path(path).name}.parts")


def features(workdir, feature):
    """Folder of a feature's shards, for all stimuli of the 73k that were extracted."""
    return Path(workdir) / "nsdfeat" / feature


def blip_captions(workdir, dataset):
    """JSON {73k id: [caption]} that BLIP gave the whole or the occluded images; its folder's manifest says how."""
    return Path(workdir) / "nsdfeat" / of_dataset("blip_captions", dataset) / "captions.json"


def feature_shard(folder, start, stop):
    return Path(folder) / f"{start:06}-{stop:06}.h5"


def feature_file(folder, stimulus):
    """The original pipeline's file for one stimulus; read when there, never written."""
    return Path(folder) / f"{stimulus:06}.npy"


def of_dataset(feature, dataset):
    """A feature's name for whole or occluded images: init_latent, init_latent_occluded."""
    return f"{feature}_occluded" if dataset == "occluded" else feature


def sidecar(path):
    """The JSON beside an artifact that says what made it."""
    return Path(path).with_suffix(".json")


def plain_files(folder):
    """The artifacts in a folder: its files but the manifest and the hidden ones,
    which are locks and unfinished files."""
    return sorted(path for path in Path(folder).iterdir()
                  if path.is_file() and path != manifest(folder) and not path.name.startswith("."))


def manifest(folder):
    """The JSON in a folder of many small artifacts that says what made them."""
    return Path(folder) / "manifest.json"
