"""Roles → checkpoints: which repository and revision, where its files lie, and what identifies them. Loads no network.

`NSD_MODELS` chooses where they come from: `hub` (the published checkpoints), `tiny` (the small trained models in
mini_nsd/models), or a folder that holds one folder per role, in the hub's layout. `NSD_REVISIONS`, which --revision
sets, names other revisions or repositories of the hub. docs/models.md says where the pinned revisions come from.

A hub's files are fetched here, at one commit, and always loaded from the local cache: so what is recorded is what was
loaded, and no library asks the hub for anything else (transformers posts to a conversion service otherwise).
"""
import argparse
import functools
import hashlib
import os
import re
from pathlib import Path

from utils.errors import Problem

# Role: (repository, revision). The revision of what is not on the hub is the name of its weights.
HUB = {
    "sd": ("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b"),
    "sd_depth": ("sd2-community/stable-diffusion-2-depth", "6cb92dd9430a7f6da8d9e99d7b60acdebcc348b7"),
    "blip": ("Salesforce/blip-image-captioning-base", "82a37760796d32b1411fe092ab5d4e227313294b"),
    "dpt": ("Intel/dpt-large", "bc15f29aa3a80d532f2ed650b5e16ac48d8958f9"),
    "clip": ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"),
}
ELSEWHERE = {
    "inception": "torchvision/inception_v3/IMAGENET1K_V1",
    "alexnet": "torchvision/alexnet/IMAGENET1K_V1",
    "efficientnet": "torchvision/efficientnet_b1/IMAGENET1K_V2",
    "swav": "torch.hub/facebookresearch/swav/swav_800ep_pretrain",
    "vgg19": "KamitaniLab/vgg19_caffe",
    "generator": "KamitaniLab/relu7generator",
}
# Repositories that pipelines of this kind name and that were taken down, and who keeps the same weights.
RETIRED = {"stabilityai/stable-diffusion-2-depth": "sd2-community/stable-diffusion-2-depth",
           "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
TINY = Path(__file__).resolve().parents[2] / "mini_nsd" / "models"
REVISIONS = "NSD_REVISIONS"
COMMIT = re.compile(r"[0-9a-f]{40}")
# The names under which transformers and diffusers look for weights, whole or in parts; variants (fp16, non_ema) are not
# read.
WEIGHTS = re.compile(r"(?:pytorch_|diffusion_pytorch_)?model(?:-\d+-of-\d+)?\.(safetensors|bin)(?:\.index\.json)?")
OTHER_WEIGHTS = (".pt", ".pth", ".tar", ".bin")  # state dicts of networks that are on no hub
WAIT = 10  # s for the hub's answer, after which the cache serves
SAFE_TORCH = "2.10"  # the release that mended CVE-2026-24747: before it, weights_only=True could be broken out of


def add_revision(parser):
    """--revision, of every script that loads a checkpoint of the hub; parsing puts it into effect."""
    parser.add_argument("--revision", nargs="+", metavar="ROLE=REVISION", action=_UseRevisions,
                        help=f"another commit, tag or branch of a hub role ({' '.join(HUB)}) than the pinned one, or "
                        "ROLE=OWNER/NAME@REVISION of another repository; the commit is recorded (docs/models.md)")


class _UseRevisions(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        use_revisions(values)
        setattr(namespace, self.dest, values)


def choice():
    """What NSD_MODELS says: "hub", "tiny", or a folder."""
    return os.environ.get("NSD_MODELS", "hub")


def simulated():
    """True if the models are the small ones, trained on simulated scenes."""
    return choice() == "tiny"


def source(role):
    """The hub id or the local folder (a Path) of a role. Raises Problem for a folder that lacks the role."""
    chosen = choice()
    if chosen == "hub":
        return ELSEWHERE[role] if role in ELSEWHERE else published(role)[0]
    folder = (TINY if chosen == "tiny" else Path(chosen)) / role
    if not folder.is_dir():
        raise Problem(f"NSD_MODELS={chosen} has no role {role} ({folder} is not a folder)",
                      "put the checkpoint there in the hub's layout, or set NSD_MODELS to hub or tiny")
    return folder


def name(role):
    """The name of a role's model in records."""
    where = source(role)
    if not isinstance(where, Path):
        return where
    return f"{choice() if choice() == 'tiny' else where.parent.name}/{role}"


def use_revisions(words):
    """Let this process load other revisions: words "ROLE=REVISION" or "ROLE=OWNER/NAME@REVISION".
    Raises Problem for others."""
    for word in words:
        role, _, wanted = word.partition("=")
        if role not in HUB or not wanted:
            raise Problem(f"--revision {word} names no revision of a role",
                          f"give ROLE=REVISION, the role one of {' '.join(HUB)}")
    os.environ[REVISIONS] = " ".join(words)
    identity.cache_clear()


def published(role):
    """(repository, revision) of a role on the hub: the pinned ones, unless NSD_REVISIONS says otherwise."""
    repository, revision = HUB[role]
    for word in os.environ.get(REVISIONS, "").split():
        of, _, wanted = word.partition("=")
        if of == role:
            other, _, revision = wanted.rpartition("@")
            repository = other or repository
    return repository, revision


def pinned(role):
    """True if the role comes from the hub at a commit: its identity is then known without asking anyone."""
    return choice() == "hub" and role in HUB and bool(COMMIT.fullmatch(published(role)[1]))


def commit(role):
    """The commit of a role's revision on the hub. Raises Problem where a branch or a tag cannot be resolved."""
    repository, revision = published(role)
    if COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, constants

    cached = _cache(repository) / "refs" / revision
    if not constants.HF_HUB_OFFLINE:
        try:
            return HfApi().model_info(repository, revision=revision, timeout=WAIT).sha
        except _network_faults() as error:
            _refused(role, error)
            if not cached.exists():
                raise Problem(f"the revision {revision} of {repository} is not known: {error}",
                              "check the network, or set NSD_MODELS to tiny or a folder") from error
    if not cached.exists():
        raise Problem(f"the revision {revision} of {repository} is not known: HF_HUB_OFFLINE is set and it is not in "
                      f"{cached.parent}",
                      "fetch it where there is a network, or give the commit's 40 digits")
    return cached.read_text(encoding="utf-8").strip()


@functools.cache
def identity(role):
    """{"model", "revision"} of a role, for the record of what made an artifact.

    The revision of a local folder is a digest of its weights, .safetensors or .bin; of a hub model, the commit that is
    loaded.
    """
    where = source(role)
    if isinstance(where, Path):
        digest = hashlib.blake2b(digest_size=16)
        for path in all_weights(where):
            digest.update(path.relative_to(where).as_posix().encode())
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return {"model": name(role), "revision": digest.hexdigest()}
    return {"model": where, "revision": where.rsplit("/", 1)[1] if role in ELSEWHERE else commit(role)}


def all_weights(folder):
    """Sorted paths of the weights below a local folder: in each of its folders, those that would be loaded."""
    found = []
    for each in {path.parent for path in folder.rglob("*")}:
        names = [path.name for path in each.iterdir()]
        found += [each / name for name in weights(names) or [name for name in names if name.endswith(".safetensors")]
                  or [name for name in names if name.endswith(OTHER_WEIGHTS)]]
    return sorted(found)


def weights(names):
    """Those of the file names in one folder that hold a network's weights:
    .safetensors, and .bin only where there are none."""
    by_kind = {kind: sorted(name for name in names if (found := WEIGHTS.fullmatch(name)) and found[1] == kind)
               for kind in ("safetensors", "bin")}
    return by_kind["safetensors"] or by_kind["bin"]


def folder(role, subfolder=""):
    """The local folder (a Path) of a role's checkpoint, with the files of `subfolder` in it;
    the hub's are fetched first.

    Raises Problem where the hub refuses, or does not answer and the cache lacks them.
    """
    where = source(role)
    return where if isinstance(where, Path) else _fetched(role, subfolder)


def _fetched(role, subfolder):
    from huggingface_hub import constants, hf_hub_download

    repository, revision = published(role)[0], commit(role)
    snapshot, why = _cache(repository) / "snapshots" / revision, "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        files, error = _listing(repository, revision)
        try:
            for file in _needed(files, subfolder):
                hf_hub_download(repository, file, revision=revision)
        except _network_faults() as fault:
            error = fault
        if error is None:
            return snapshot
        _refused(role, error)
        why = f"the hub does not answer ({error})"
    if not (snapshot / subfolder).is_dir():
        there = sorted(path.name for path in snapshot.parent.glob("*"))
        raise Problem(f"cannot load the {role} model: {why}, and {repository} at {revision} is not in "
                      f"{constants.HF_HUB_CACHE}"
                      + (f", which has {' '.join(there)}" if there else ""),
                      "fetch it where there is a network" + (
                          f", or give --revision {role}={there[-1]}" if there
                          else ", unset HF_HUB_OFFLINE, or set NSD_MODELS to tiny or a folder"))
    return snapshot


def is_cached(role):
    """Whether the hub's cache holds something of a hub role at its commit; asks nobody for a commit that is named."""
    repository, revision = published(role)
    snapshots = _cache(repository) / "snapshots"
    return (snapshots / revision).is_dir() or (not COMMIT.fullmatch(revision) and snapshots.is_dir())


def unreachable(role):
    """Why a hub role that is not cached cannot be fetched now, (what, what to do); None if it can."""
    from huggingface_hub import constants

    repository, revision = published(role)
    if constants.HF_HUB_OFFLINE:
        return (f"{repository} ({role}) is not in the cache and HF_HUB_OFFLINE is set",
                "fetch it where there is a network")
    _, error = _listing(repository, revision)
    if error is None:
        return None
    try:
        _refused(role, error)
    except Problem as problem:
        return problem.what, problem.todo
    return (f"{repository} ({role}) is not in the cache and the hub does not answer",
            "check the network, or set NSD_MODELS to tiny or a folder")


def _needed(files, subfolder):
    """Of a repository's files, what a component in `subfolder` loads:
    configuration, vocabulary, and weights of one kind."""
    prefix = f"{subfolder}/" if subfolder else ""
    names = [file.removeprefix(prefix) for file in files if file.startswith(prefix)
             and "/" not in file.removeprefix(prefix)]
    small = [name for name in names if name.endswith((".json", ".txt")) and not WEIGHTS.fullmatch(name)]
    return [prefix + name for name in small + weights(names)]


@functools.cache
def _listing(repository, revision):
    """(files of a repository, None), or ([], why the hub did not say):
    asked once per process, since waiting takes long."""
    from huggingface_hub import HfApi

    try:
        listed = HfApi().model_info(repository, revision=revision, timeout=WAIT)
        return [file.rfilename for file in listed.siblings], None
    except _network_faults() as error:
        return [], error


def _cache(repository):
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def _network_faults():
    from huggingface_hub.errors import HFValidationError, HTTPError  # HTTPError: of whichever client the hub uses

    return OSError, HTTPError, HFValidationError


def _refused(role, error):
    """Raises Problem if the hub answered that the repository or the revision is not to be had."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, revision = published(role)
    other = (f"put a copy of the checkpoint into FOLDER/{role} in the hub's layout and set NSD_MODELS=FOLDER, or name "
             f"a mirror of the same weights: --revision {role}=OWNER/NAME@REVISION (docs/models.md)")
    if isinstance(error, GatedRepoError):
        raise Problem(f"the repository {repository} of role {role} is gated: it gives files only to accounts that "
                      "accepted its terms",
                      f"accept them on its page and log in with `hf auth login`; or {other}") from error
    if isinstance(error, RevisionNotFoundError):
        raise Problem(f"{repository} has no revision {revision} (any more)",
                      f"give another: --revision {role}=main, whose commit is recorded; or {other}") from error
    if isinstance(error, (RepositoryNotFoundError, DisabledRepoError, HFValidationError)):
        successor = RETIRED.get(repository)
        raise Problem(f"the hub has no repository {repository}, of role {role}: it was retired, renamed or made "
                      "private",
                      f"{successor} replaces it: --revision {role}={successor}@main" if successor else other) from error


def check_unpickler(path):
    """Raises Problem where the installed torch cannot read a pickled state dict safely, even with weights_only=True."""
    import torch

    if torch.__version__ < SAFE_TORCH:
        raise Problem(f"{path} is pickled, and torch {torch.__version__} can be made to run code by such a file "
                      "(CVE-2026-24747)",
                      f"install torch {SAFE_TORCH} or later, or give the weights as .safetensors")
