"""BLIP: the visual embedding of an image and captions from an embedding.

The embedding is taken at 5/8 of the size that the checkpoint was trained at, with interpolated position embeddings:
Takagi & Nishimoto (arXiv 2306.11536) feed 240 px to BLIP base, whose own size is 384, and get 226×768 numbers.
"""
import numpy as np

from utils import cli, images, layout, lazy
from utils.errors import Problem
from utils.features import extraction
from utils.generate import diffusion
from utils.models import checkpoints, loading
from utils.nsd import coco_captions, s3, trials
from utils.ridge import decoded_features
from utils.storage import feature_shards, provenance, text_files, writing

torch = lazy.module("torch")

# What a caption starts with. BLIP's authors train with this prompt and generate after it (salesforce/BLIP,
# models/blip.py and configs/caption_coco.yaml). A checkpoint that learnt to start otherwise says so in its config.json,
# as "caption_prompt".
PROMPT = "a picture of "
FEATURE_SHARE = 240 / 384  # side of the images, as a share of the checkpoint's own size
BEAMS = {"num_beams": 3, "min_length": 5, "max_length": 20, "repetition_penalty": 1.5}  # docs/algorithms.md#captions
AUTO_BATCH = {"cuda": 64, "mps": 16, "cpu": 16}  # captions generated at once
BLOCK = 256  # captions between two writes: the most that a killed run has to redo


class Captioner:
    """The numerics around one BLIP checkpoint (`loading.blip`).

    prompt: as --prompt says (`add_prompt`). `start` is then the text that captions continue, and is not part of them,
    and `pixels` what the picture is fed as: "normalised" as the checkpoint's image processor says, or "0-1".
    Raises Problem, when a caption is made, for a prompt that the checkpoint's vocabulary cannot spell.
    """

    def __init__(self, network, tokenizer, processor, prompt="authors"):
        self.network, self.tokenizer, self.processor = network, tokenizer, processor
        self.start = {"authors": getattr(network.config, "caption_prompt", PROMPT), "published": PROMPT,
                      "none": ""}.get(prompt, prompt)
        self.pixels = "0-1" if prompt == "published" else "normalised"
        vision = network.config.vision_config
        patches = round(vision.image_size * FEATURE_SHARE / vision.patch_size)
        self.size = patches * vision.patch_size
        self.shape = (1 + patches ** 2, vision.hidden_size)

    def prepare(self, stimuli):
        """(n, H, W, 3) uint8 → (n, 3, s, s) float32, for `embed`."""
        if self.pixels == "0-1":
            return images.to_network(stimuli, self.size).add_(1).div_(2)  # their Lanczos and ToTensor, no mean and sd
        return images.to_processor(stimuli, self.size, self.processor)

    def blank(self):
        """(1, 3, s, s) float32, a prepared picture of nothing: see memory.batch."""
        return torch.zeros(1, 3, self.size, self.size)

    def probe(self):
        """Caption one blank embedding: what memory.batch tries."""
        self.caption(torch.zeros(1, *self.shape))

    @lazy.inference_mode
    def embed(self, pixels):
        """(n, 3, s, s) → (n, 1 + patches, width) float32: the vision model's last hidden state,
        226×768 for BLIP base."""
        vision = self.network.vision_model
        pixels = pixels.to(self.network.device, self.network.dtype)
        return vision(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state.float()

    @lazy.inference_mode
    def caption(self, embeddings):
        """(n, 1 + patches, width) embeddings, true or decoded → n captions, each one line without double quotes."""
        decoder, text = self.network.text_decoder, self.network.config.text_config
        embeddings = embeddings.to(self.network.device, self.network.dtype)
        start = self._start_tokens().to(self.network.device)
        tokens = decoder.generate(
            input_ids=start.expand(len(embeddings), -1), encoder_hidden_states=embeddings,
            encoder_attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=self.network.device),
            eos_token_id=text.sep_token_id, pad_token_id=text.pad_token_id, **BEAMS)
        return [one_line(self.tokenizer.decode(row[len(start):], skip_special_tokens=True,
                                               clean_up_tokenization_spaces=True))
                for row in tokens]

    def _start_tokens(self):
        """(tokens,) int64: the token that starts a caption, and those of the prompt."""
        words = self.tokenizer(self.start).input_ids[1:-1]
        if self.tokenizer.unk_token_id in words or len(words) + 1 >= BEAMS["max_length"]:
            raise Problem(f"the caption prompt {self.start!r} is not in the vocabulary of "
                          f"{checkpoints.name('blip')}, or too long",
                          "give another --prompt, or none")
        return torch.tensor([self.network.config.text_config.bos_token_id, *words])


def one_line(caption):
    """A caption as its file holds it: single spaces; no tab or double quote, which CSV readers take as their own."""
    return " ".join(caption.replace('"', "'").split())


def batches(items, size):
    return [items[start:start + size] for start in range(0, len(items), size)]


def caption_stimuli(args, ids, device):
    """Add to layout.blip_captions the captions of those stimuli `ids` that have none, from their stored embeddings."""
    feature = layout.of_dataset("blip", args.dataset)
    path = layout.blip_captions(args.workdir, args.dataset)
    shards = feature_shards.Shards(args.outdir or layout.features(args.workdir, feature))
    captioner = Captioner(*loading.blip(device, torch.float32), args.prompt)
    provenance.claim_folder(path.parent, {"features": shards.attributes(), "beams": BEAMS, "prompt": captioner.start},
                            args.overwrite)
    size = extraction.batch_size(args, device, AUTO_BATCH, captioner.probe)
    with writing.locked(path):
        found = text_files.read_json(path) if path.exists() else {}
        if args.overwrite:  # only what is asked for: another process may be at work on other images
            for stimulus in ids:
                found.pop(str(stimulus), None)
        # A batch with any caption missing is made whole, so that a resumed run gives what an uninterrupted one would.
        todo = [batch for batch in batches([int(stimulus) for stimulus in ids], size)
                if any(str(stimulus) not in found for stimulus in batch)]
        unsaved = 0
        with cli.progress(desc=path.parent.name, total=sum(map(len, todo)), unit="img") as bar:
            for number, batch in enumerate(todo, start=1):
                embeddings = torch.from_numpy(shards.read(batch, "img2feat_blip.py").astype(np.float32))
                found |= {str(stimulus): [caption] for stimulus, caption in zip(batch, captioner.caption(embeddings))}
                unsaved += len(batch)
                if unsaved >= BLOCK or number == len(todo):
                    text_files.write_json(path, found)
                    unsaved = 0
                bar.update(len(batch))
    print(f"{path.parent.name}: {len(ids)} captions in {path}")


def add_prompt(parser):
    """--prompt: what captions start from, of the true images and of decoded features alike."""
    parser.add_argument(
        "--prompt", default="authors", metavar="WAY",
        help="authors (default): captions continue what the checkpoint's authors let them continue, \"a picture of\" "
        "for BLIP, from normalised pixels; published: the same from pixels in [0, 1], as the published pipeline; none: "
        "from the bare start token; or a text of your own")


def add_arguments(parser, dataset):
    """The flags of decode_captions.py and its twin."""
    decoded_features.add_arguments(parser, dataset)
    add_prompt(parser)
    parser.add_argument("--target", type=cli.name, metavar="FEATURE",
                        help="decoded feature to caption: blip (default), or init_latent, by way of the image that it "
                        "decodes to; …_occluded for occluded images")


def decode(args, scores):
    """Write a caption of each test image from its decoded feature, and print how well they fit the images.

    scores: what says so, the module `evaluate.caption_scores`.
    """
    target = args.target or layout.of_dataset("blip", args.dataset)
    ways = {layout.of_dataset("blip", args.dataset): from_embedding,
            layout.of_dataset("init_latent", args.dataset): from_latent}
    decoded_features.check_dataset(target, args.dataset)
    if target not in ways:
        raise Problem(f"{target} cannot be captioned", f"--target takes {' or '.join(ways)}")
    ws, device = layout.Workspace.of(args), cli.device(args.gpu)
    own_name = () if target == "blip" else (target, args.dataset)
    path = ws.captions(*own_name, control=decoded_features.suffix(args))
    captions_of, source, made_from = ways[target](args, ws, target, device)
    wanted = provenance.record("decode_captions.py", {"target": target, "beams": BEAMS, "prompt": args.prompt,
                                                      **decoded_features.options(args)}, [source],
                               **made_from)
    with writing.locked(path):
        if provenance.is_done(path, wanted, args.overwrite):
            print(f"{path.stem}: done before; "
                  f"{scores.sentence(text_files.read_json(layout.sidecar(path))['score'])}")
            return
        references = people(ws, args.workdir)
        size = extraction.batch_size(args, device, AUTO_BATCH, lambda: captions_of([0]))
        found = []
        with cli.progress(desc=path.stem, total=len(references), unit="img") as bar:
            for batch in batches(range(len(references)), size):
                found += captions_of(batch)
                bar.update(len(batch))
        scored = scores.score(found, references, scores.clip_text_features(device))
        text_files.write_text(ws.captions_people(), "".join(f"{one_line(of_image[0])}\n" for of_image in references))
        with writing.atomic(path) as temporary:
            temporary.write_text("".join(f"{caption}\n" for caption in found), encoding="utf-8", newline="\n")
            provenance.finish(path, wanted, temporary, score=scored)
    print(f"{path.stem}: {scores.sentence(scored)}")


def from_embedding(args, ws, target, device):
    """How to caption test images from their decoded BLIP embeddings: (function of indices, file read, models)."""
    captioner = Captioner(*loading.blip(device, torch.float32), args.prompt)
    found, path = decoded_features.read(args, ws, target, captioner.shape,
                                        checkpoints.identity("blip") | {"pixels": captioner.pixels})
    return (lambda batch: captioner.caption(torch.from_numpy(found[batch])), path,
            {**checkpoints.identity("blip"), "caption_start": captioner.start})


def from_latent(args, ws, target, device):
    """As from_embedding, for a latent: it is not a BLIP embedding, but it decodes to an image, which has a caption."""
    captioner = Captioner(*loading.blip(device, torch.float32), args.prompt)
    model = diffusion.LatentDiffusion(loading.stable_diffusion(device, torch.float32))
    found, path = decoded_features.read(args, ws, target, model.latent_shape, checkpoints.identity("sd"))

    def captions_of(batch):
        pictures = images.to_pixels(model.decode(torch.from_numpy(found[batch])), model.size)
        return captioner.caption(captioner.embed(captioner.prepare(pictures)))

    return captions_of, path, {**checkpoints.identity("blip"), "caption_start": captioner.start,
                               "image_decoder": checkpoints.identity("sd")}


def people(ws, workdir):
    """Per test image, the captions that people gave it."""
    return coco_captions.captions_of(coco_captions.captions(s3.Root.from_env(), workdir), trials.test_stimuli(ws))


def read(path, count, made_by):
    """The captions that `decode` wrote. Raises Problem unless there are `count`, one a line and none empty."""
    try:
        found = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise Problem(f"{path} is missing", f"run {made_by}") from error
    except UnicodeDecodeError as error:
        raise Problem(f"{path} is not UTF-8 text ({error})", f"run {made_by} --overwrite") from error
    if len(found) != count or not all(caption.strip() for caption in found):
        raise Problem(f"{path} has {sum(bool(caption.strip()) for caption in found)} captions for {count} test images",
                      f"run {made_by} --overwrite")
    return found
