"""Caption each test image from its decoded BLIP embedding: 3 beams, 5–20 tokens, repetition penalty 1.5.

--prompt says what captions continue; give img2feat_blip.py the same, so that decoded and true captions are comparable.

With --target init_latent, the decoded latent becomes an image first and BLIP captions that: all from brain activity.

Reads   decoded/{subject}/{subject}_{rois}_scores_{target}.npy, and people's captions to score the result by
Writes  decoded/{subject}/captions/captions_brain.csv, a caption per line, and .json
        (captions_brain_{target}_{dataset}.csv for another target or occluded images)
"""
from utils import cli
from utils.evaluate import caption_scores
from utils.generate import captioning


def main(argv=None, dataset="nsd"):
    parser = cli.parser(__doc__, "python decode_captions.py --subject subj01")
    captioning.add_arguments(parser, dataset)
    captioning.decode(cli.parse(parser, argv), caption_scores)


if __name__ == "__main__":
    cli.run(main)
