#!/usr/bin/env python
"""Penultimate features of two runs side by side in two dimensions, by scikit-learn's t-SNE.

python tools/plot_tsne.py digits/vanilla_resnet8 digits/dkd_resnet20_resnet8
python tools/plot_tsne.py cifar100/kd_res32x4_res8x4 cifar100/dkd_res32x4_res8x4 --classes 20

Of the validation samples. Prints how far the classes are apart (silhouette, and accuracy of the 10 nearest neighbours)
in the embedding and, since t-SNE distorts, in the features themselves. Writes tsne.json, tsne.csv, tsne.png and .svg.
"""

from classification.studies.runs import load_runs, parser
from classification.studies.tsne import NAME, Settings, compare, write_comparison
from kd_det.common.errors import one_line_errors

HELP = {
    "classes": "how many classes, evenly spread, 2 to 20",
    "samples": "at most so many samples of them",
    "perplexity": "t-SNE's: about how many neighbours of a sample count",
    "seed": "of t-SNE and of which samples",
}


def main() -> None:
    options = parser(__doc__, NAME, 2)
    for name, default in Settings()._asdict().items():
        described = f"{HELP[name]} (default {default:g})"
        options.add_argument(f"--{name}", type=type(default), default=default, metavar="N", help=described)
    args = options.parse_args()
    with one_line_errors():
        settings = Settings(*(getattr(args, name) for name in Settings._fields))
        settings.check()
        runs = load_runs(args)
        embeddings = compare(*runs, settings)
        files = write_comparison(args.output_dir, embeddings, runs[0], settings)
    for each in embeddings:
        figures = [f"{space} silhouette {found['silhouette']:.3f}, kNN {found['knn_top1']:.1f} %"
                   for space, found in each.figures.items()]  # fmt: skip
        print(f"{each.run}: {'; '.join(figures)}")
    print(f"wrote {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
