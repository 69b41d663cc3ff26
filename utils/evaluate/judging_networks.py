"""The networks that judge reconstructions: Inception, AlexNet, CLIP, EfficientNet and SwAV features, in batches."""
import numpy as np
from PIL import Image

from utils import lazy
from utils.features import extraction
from utils.models import checkpoints, loading

torch = lazy.module("torch")
feature_extraction = lazy.module("torchvision.models.feature_extraction")

# What each evaluation feature is, in torchvision's and transformers' names: those of the original's
# img2feat_decoded.py, and those of evaluate.py's table besides (utils/evaluate/papers_table.py says which).
CLASSIFIERS = {
    "inception": {"avgpool": "inception"},
    "alexnet": {"features.4": "alexnet4", "features.5": "alexnet5", "features.11": "alexnet11",
                "features.12": "alexnet12", "classifier.5": "alexnet18"},
    "efficientnet": {"avgpool": "efficientnet"},
    "swav": {"avgpool": "swav"},
}
CLIP_HIDDEN = {6: "clip_h6", 12: "clip_h12"}


def role(name):
    """The role (`utils/models/loading.py`) of the network that a feature is of."""
    return next((role for role, nodes in CLASSIFIERS.items() if name in nodes.values()), "clip")


def resize(image, size):
    """(H, W, 3) uint8 square picture → (size, size, 3) uint8, bilinear as torchvision's Resize."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


class Evaluators:
    """Features of pictures by name (layout.EVALUATION_FEATURES, and the others of CLASSIFIERS), in float32.

    names: those to compute; only the networks they need are loaded.
    """

    def __init__(self, names, device):
        self.names, self.device = set(names), device
        self.classifiers = []
        for role, nodes in CLASSIFIERS.items():
            nodes = {node: name for node, name in nodes.items() if name in self.names}
            if nodes:
                network, preprocessing = loading.classifier(role, device)
                extractor = feature_extraction.create_feature_extractor(network, nodes)
                self.classifiers.append((extractor, preprocessing))
        self.clip = loading.clip(device)[:2] if self.names & {"clip", *CLIP_HIDDEN.values()} else None

    @lazy.inference_mode
    def __call__(self, pictures):
        """(n, H, W, 3) uint8 → {name: (n, dims) float32}."""
        found = {}
        for network, preprocessing in self.classifiers:
            found |= network(self._normalised(pictures, **preprocessing))
        if self.clip:
            found |= self._clip(pictures)
        return {name: extraction.finite(found[name].flatten(1), f"the network of {name}",
                                        "check its weights, then the pictures")
                for name in found if name in self.names}

    def _normalised(self, pictures, image_size, mean, std):
        resized = np.stack([resize(picture, image_size) for picture in pictures]).astype(np.float32) / 255
        tensor = torch.from_numpy((resized - np.float32(mean)) / np.float32(std))
        return tensor.permute(0, 3, 1, 2).contiguous().to(self.device)

    def _clip(self, pictures):
        network, processor = self.clip
        pixels = processor(images=list(pictures), return_tensors="pt").pixel_values.to(self.device)
        seen = network.vision_model(pixel_values=pixels, output_hidden_states=True)
        found = {name: seen.hidden_states[depth] for depth, name in CLIP_HIDDEN.items() if name in self.names}
        return found | {"clip": network.visual_projection(seen.pooler_output)}

    def identities(self):
        """{role: model and revision} of the networks that judge."""
        roles = [role for role, nodes in CLASSIFIERS.items() if self.names & set(nodes.values())]
        return {role: checkpoints.identity(role) for role in roles + (["clip"] if self.clip else [])}
