"""Evaluate every run of reconstructions by the field's standard: the table that papers print, and the checks behind it.

PixCorr, SSIM, AlexNet(2), AlexNet(5), Inception, CLIP (two-way identification, percent), EfficientNet-B1 and SwAV
distances, each with a 95% bootstrap interval over images. A metric whose weights are absent (NSD_MODELS, roles
efficientnet and swav) and a run whose pictures are not there are named, with the reason. "true features" is the
recovery check, an upper bound; "shuffled trials" the control. Decoded captions get a sentence-level score in CLIP's
text space. --held_out_clusters K asks whether decoding goes beyond picking among training clusters (Shirakawa et al.
2024): decoders are refitted without the training stimuli of each test image's cluster. It needs ridge.py's predictions
of c and init_latent.

Reads   decoded/image-*/{subject}/samples/, identification/ where it is whole, decoded/{subject}/captions/;
        with --held_out_clusters: mrifeat/, nsdfeat/subjfeat/, decoded/{subject}/*_scores_*
Writes  evaluation/{subject}/{subject}_evaluation.csv and .md, _captions.csv, _held_out.csv, and per_image/
"""
from utils import cli
from utils.evaluate import evaluation_stage, held_out_clusters
from utils.models import checkpoints


def main(argv=None):
    parser = cli.parser(__doc__, "python evaluate.py --subject subj01 --held_out_clusters 5")
    cli.add_subject(parser)
    cli.add_gpu(parser)
    checkpoints.add_revision(parser)
    cli.add_seed(parser)
    held_out_clusters.add_arguments(parser)
    args = cli.parse(parser, argv)
    held_out_clusters.check_arguments(parser, args)
    print(evaluation_stage.run(args), end="")


if __name__ == "__main__":
    cli.run(main)
