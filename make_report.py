"""Gather one subject's results on one page, report.html, that is read anywhere and fetches nothing.

Its first screen says what was seen, what was hidden, what came back and how sure that is; then come a gallery of every
test image, close-ups of hidden regions, the tables with intervals and controls, and what made it all. What is not there
is named on the page, and here, with the command that makes it. A page that shows what there is already is kept.

Reads   decoded/image-*/{subject}/samples/, scores/per_image_scores_{subject}_*.csv and .json,
        amodal_completion/{subject}/, evaluation/{subject}/, decoded/{subject}/captions/ and *_scores_*.json,
        mrifeat/{subject}/
Writes  report/{subject}/report.html and .json
"""
from utils import cli
from utils.report import page


def main(argv=None):
    parser = cli.parser(__doc__, "python make_report.py --subject subj01")
    cli.add_subject(parser)
    parser.add_argument("--n_samples", type=int, default=2, metavar="N",
                        help="show the first N samples of each image (default: 2)")
    parser.add_argument("--megabytes", type=float, default=14, metavar="MB",
                        help="size of the page to aim at; pictures are made smaller to fit (default: 14)")
    args = cli.parse(parser, argv)
    if args.n_samples < 1:
        parser.error("--n_samples must be at least 1")
    if not args.megabytes > 0:
        parser.error("--megabytes must be positive")

    path, made, missing = page.write(args)
    for what, command in missing:
        cli.say(f"not in the report: {what} — {command}")
    print(f"{path}: {'made' if made else 'up to date'}, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
