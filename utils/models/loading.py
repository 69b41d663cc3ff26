"""The networks of the roles: each loaded once per process, whole or not at all, never unpickled.

`utils/models/checkpoints.py` says which checkpoint a role is and where its files lie.
"""
import functools
import gc
import pickle
from pathlib import Path

from huggingface_hub.errors import HTTPError  # of whichever client the hub uses
from safetensors import SafetensorError

from utils import lazy

# Of a role, for whoever loads one.
from utils.errors import Problem
from utils.models import checkpoints

torch = lazy.module("torch")
safetensors_torch = lazy.module("safetensors.torch")

# The original pipeline feeds 299 px to Inception and AlexNet alike (img2feat_decoded.py); the mean and sd are
# ImageNet's.
IMAGENET = {"image_size": 299, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

# The networks of evaluate.py's distances: torchvision's architecture, and the size in px of MindEye's evaluation.
DISTANCE = {"efficientnet": ("efficientnet_b1", 255), "swav": ("resnet50", 224)}
# Weights that a published checkpoint lacks and no forward pass reads: the deepest fusion layer of a DPT has no residual
# (transformers' DPTFeatureFusionStage), and Intel/dpt-large, converted from the original, has none of its four tensors.
UNREAD = {"DPTForDepthEstimation": "neck.fusion_stage.layers.0.residual_layer1."}
NAMED = 8  # at most so many of a checkpoint's missing weights are named in a message
SWAV_URL = "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"  # as SwAV's hubconf.py names it

# As torchvision builds what it loads into.
UNTRAINED = {"inception": {"transform_input": True, "init_weights": False}, "alexnet": {}}
UNREADABLE = (OSError, HTTPError, RuntimeError, AttributeError, EOFError, pickle.UnpicklingError, SafetensorError)


def cpu_has_bfloat16():
    """True if the processor multiplies bfloat16 matrices natively; elsewhere bfloat16 is emulated and slow."""
    # Private: where it is gone, float32 serves.
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and supported is not None and supported()


def precision(chosen, device):
    """The dtype that --precision names: auto is float16 on a GPU, bfloat16 on a CPU that has it, else float32."""
    if chosen != "auto":
        return getattr(torch, chosen)
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else torch.float32


def dtype_name(dtype):
    """float16 for torch.float16: how records and --precision name it."""
    return str(dtype).removeprefix("torch.")


def arithmetic(device):
    """How a GPU multiplies float32, for the record: "ieee", or "tf32" (10 bits).
    Nothing for a CPU, which has one way."""
    return {"float32": torch.backends.cudnn.conv.fp32_precision} if device.type == "cuda" else {}


def _load(cls, role, method="from_pretrained", **options):
    import diffusers
    import transformers

    for library in (diffusers, transformers):  # their bars and reports are about files, not about this run
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    where = checkpoints.folder(role, options.get("subfolder", ""))
    try:
        return getattr(cls, method)(where, **options)
    except (*UNREADABLE, ValueError, KeyError, TypeError) as error:
        part = f" ({options['subfolder']})" if "subfolder" in options else ""
        raise Problem(f"cannot load the {role} model{part} from {where}: {error}",
                      "check the folder, or remove it from the hub's cache and fetch it again") from error


def _network(cls, role, device, dtype, **options):
    """A network in eval mode. Raises Problem unless every weight that it reads comes from the checkpoint."""
    where = checkpoints.folder(role, options.get("subfolder", "")) / options.get("subfolder", "")
    files = checkpoints.weights([path.name for path in where.glob("*")])
    if not files:
        raise Problem(f"cannot load the {role} model: {where} holds no weights",
                      "put model.safetensors there, or pytorch_model.bin")
    pickled = ".bin" in files[0]
    if pickled:
        checkpoints.check_unpickler(where / files[0])
    model, loaded = _load(cls, role, use_safetensors=not pickled, output_loading_info=True, **options)
    lacking = sorted(key for key in loaded["missing_keys"] if not key.startswith(UNREAD.get(cls.__name__, "/")))
    if lacking:
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        raise Problem(f"the {role} checkpoint {where} lacks {len(lacking)} weights of {cls.__name__}: "
                      f"{', '.join(lacking[:NAMED])}{more}",
                      "fetch it anew; it would run with random numbers in their place")
    return model.eval().requires_grad_(False).to(device=device, dtype=dtype)


class StableDiffusion:
    """The parts of a latent diffusion checkpoint on one device in one dtype, each loaded when it is first used."""

    def __init__(self, role, device, dtype):
        self.role, self.device, self.dtype = role, device, dtype

    @functools.cached_property
    def vae(self):
        from diffusers import AutoencoderKL

        from utils.models import winograd

        # On a CPU in float32 Stable Diffusion's takes half the time so.
        return winograd.faster(_network(AutoencoderKL, self.role, self.device, self.dtype, subfolder="vae"))

    @functools.cached_property
    def unet(self):
        from diffusers import UNet2DConditionModel

        return _network(UNet2DConditionModel, self.role, self.device, self.dtype, subfolder="unet")

    @functools.cached_property
    def text_encoder(self):
        from transformers import CLIPTextModel

        return _network(CLIPTextModel, self.role, self.device, self.dtype, subfolder="text_encoder")

    @functools.cached_property
    def tokenizer(self):
        from transformers import CLIPTokenizer

        return _load(CLIPTokenizer, self.role, subfolder="tokenizer")

    @functools.cached_property
    def scheduler_config(self):
        from diffusers import DDIMScheduler

        return dict(_load(DDIMScheduler, self.role, subfolder="scheduler").config)

    @functools.cached_property
    def latent_side(self):
        """Side of the latents that the UNet was trained on: 64 for Stable Diffusion at 512 px."""
        from diffusers import UNet2DConditionModel

        return _load(UNet2DConditionModel, self.role, method="load_config", subfolder="unet")["sample_size"]


@functools.lru_cache(maxsize=1)
def stable_diffusion(device, dtype, role="sd"):
    """The checkpoint of a role, sd or sd_depth."""
    return StableDiffusion(role, device, dtype)


@functools.lru_cache(maxsize=1)
def clip(device):
    """(CLIPModel, CLIPImageProcessor, CLIPTokenizer)."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    return (_network(CLIPModel, "clip", device, torch.float32), _load(CLIPImageProcessor, "clip"),
            _load(CLIPTokenizer, "clip"))


@functools.lru_cache(maxsize=4)
def classifier(role, device):
    """(network, preprocessing) of inception, alexnet, efficientnet or swav.

    preprocessing: {"image_size", "mean", "std"}. From the hub, torchvision's ImageNet weights, or SwAV's own; from a
    folder, its config.json and model.safetensors, or for efficientnet and swav a state dict (see `_distance_network`).
    """
    where = checkpoints.source(role)
    if role in DISTANCE:
        network, preprocessing = _distance_network(role, where), IMAGENET | {"image_size": DISTANCE[role][1]}
    elif isinstance(where, Path):
        from utils.models import narrow_nets

        try:
            network, config = narrow_nets.load(where)
            preprocessing = {key: config[key] for key in IMAGENET}
        except (*UNREADABLE, ValueError, KeyError, TypeError) as error:
            raise Problem(f"cannot load the {role} weights from {where}: {error}", "check the folder") from error
    else:
        import torchvision

        _, name, weights = where.split("/")
        try:
            state = _torchvision_state(name, weights)
            network, preprocessing = torchvision.models.get_model(name, **UNTRAINED[role]), IMAGENET
            network.load_state_dict(state)
        except UNREADABLE as error:
            raise Problem(f"cannot load the {role} weights of {where}: {error}",
                          "check the network, or torch's cache") from error
    return network.eval().requires_grad_(False).to(device), preprocessing


def _distance_network(role, where):
    """torchvision's EfficientNet-B1 or ResNet-50 with the weights of a role; only the classifying head may lack.

    A folder holds one state dict under torchvision's names: a .safetensors, or a .pt, .pth or .pth.tar file, read with
    weights_only=True. Raises Problem where the weights are not there or of another network.
    """
    import torchvision

    architecture = DISTANCE[role][0]
    try:
        if isinstance(where, Path):
            state = _state_dict(where)
        elif role == "swav":
            state = _downloaded(SWAV_URL)
        else:
            state = _torchvision_state(architecture, where.rsplit("/", 1)[1])
        network = torchvision.models.get_model(architecture)
        found = {key.removeprefix("module."): value for key, value in state.items()}
        lacking = network.load_state_dict(found, strict=False).missing_keys
    except UNREADABLE as error:
        raise Problem(f"cannot load the {role} weights from {where}: {error}",
                      "check the file, or the network for a hub") from error
    if body := [key for key in lacking if not key.startswith(("fc.", "classifier."))]:
        raise Problem(f"the {role} weights in {where} lack {len(body)} tensors of {architecture} (the first is "
                      f"{body[0]})",
                      "give a state dict under torchvision's names")
    return network


def _torchvision_state(architecture, weights):
    """The state dict of torchvision's weights of a network, by their name."""
    import torchvision

    return _downloaded(torchvision.models.get_model_weights(architecture)[weights].url, check_hash=True)


def _downloaded(url, check_hash=False):
    """The state dict of a URL, from torch's cache where it is there; never unpickled.
    HF_HUB_OFFLINE holds for it too."""
    from huggingface_hub import constants

    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if constants.HF_HUB_OFFLINE and not cached.exists():
        raise Problem(f"HF_HUB_OFFLINE is set and {cached} is missing",
                      f"fetch {url}, or set NSD_MODELS to tiny or a folder")
    checkpoints.check_unpickler(url)
    # torchvision's own get_state_dict would unpickle.
    return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True, progress=False,
                                              check_hash=check_hash)


def is_cached(role):
    """Whether a role of the hub, or torchvision's or SwAV's weights, are on this disk; nothing is fetched."""
    if role in checkpoints.HUB:
        return checkpoints.is_cached(role)
    import torchvision

    url = SWAV_URL
    if role != "swav":
        _, name, weights = checkpoints.ELSEWHERE[role].split("/")
        url = torchvision.models.get_model_weights(name)[weights].url
    return (Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]).exists()


def _state_dict(folder):
    """The one state dict in a folder, never unpickled. Raises Problem unless there is exactly one."""
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.pt*"))
    if len(found) != 1:
        raise Problem(f"{folder} holds {len(found)} state dicts", "put one .safetensors or .pth file there")
    if found[0].suffix == ".safetensors":
        return safetensors_torch.load_file(found[0])
    checkpoints.check_unpickler(found[0])
    return torch.load(found[0], map_location="cpu", weights_only=True)


@functools.lru_cache(maxsize=1)
def blip(device, dtype):
    """(BlipForConditionalGeneration, BertTokenizer, BlipImageProcessor)."""
    from transformers import BertTokenizer, BlipForConditionalGeneration, BlipImageProcessor

    return (_network(BlipForConditionalGeneration, "blip", device, dtype), _load(BertTokenizer, "blip"),
            _load(BlipImageProcessor, "blip"))


@functools.lru_cache(maxsize=1)
def dpt(device, dtype):
    """(DPTForDepthEstimation, DPTImageProcessor)."""
    from transformers import DPTForDepthEstimation, DPTImageProcessor

    return _network(DPTForDepthEstimation, "dpt", device, dtype), _load(DPTImageProcessor, "dpt")


@functools.lru_cache(maxsize=1)
def vgg19(device):
    """The Caffe VGG19 in float32, as a `caffe_nets.Encoder`. No hub carries it: NSD_MODELS has to be a folder."""
    from utils.models import caffe_nets

    return caffe_nets.load_encoder(_cookbook("vgg19", caffe_nets.VGG19_FILES), device)


@functools.lru_cache(maxsize=1)
def generator(device):
    """The relu7 image generator in float32, as a `caffe_nets.Generator`; see `vgg19`."""
    from utils.models import caffe_nets

    return caffe_nets.load_generator(_cookbook("generator", caffe_nets.GENERATOR_FILES), device)


def _cookbook(role, files):
    where = checkpoints.source(role)
    if not isinstance(where, Path):
        raise Problem(f"no hub carries the {role} of Kamitani Lab's cookbook",
                      f"take {' and '.join(map(str, files))} from figshare (by KamitaniLab/"
                      f"brain-decoding-cookbook-public, data/), put them into FOLDER/{role}/ and set "
                      "NSD_MODELS=FOLDER, or set NSD_MODELS=tiny")
    return where


def forget():
    """Free the loaded models, and a GPU's memory with them, between the stages of one process."""
    for cached in (stable_diffusion, clip, classifier, blip, dpt, vgg19, generator):
        cached.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
