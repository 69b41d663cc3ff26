"""Turn decoded DPT hidden states into depth maps: DPT's neck and head, bicubic to 64×64, scaled to [-1, 1] per image.

Reads   decoded/{subject}/{subject}_{rois}_scores_dpt_emb0.npy … dpt_emb3.npy
Writes  decoded/{subject}/dpt_fromemb/{i}.npy, (1, 1, 64, 64) float32, larger = nearer, and dpt_fromemb_image/{i}.png
        (the same at 512 px, 8-bit, nearer = brighter)
        (with --dataset occluded: dpt_fromemb_occluded, dpt_fromemb_image_occluded)
"""
from utils import cli
from utils.generate import depth_maps


def main(argv=None, dataset="nsd"):
    parser = cli.parser(__doc__, "python dptemb2dpt.py --gpu 0 --subject subj01")
    depth_maps.add_arguments(parser, dataset)
    depth_maps.decode(cli.parse(parser, argv))


if __name__ == "__main__":
    cli.run(main)
