#!/usr/bin/env python
"""How far two students' logits correlate as their teacher's: |difference| of the C x C matrices, side by side.

python tools/plot_correlation.py digits/kd_resnet20_resnet8 digits/dkd_resnet20_resnet8

A class's logit is correlated (Pearson) with another's over the validation samples. Prints each matrix's mean: the
lower, the more like the teacher. Writes correlation.json, difference_1.csv, difference_2.csv, correlation.png and .svg.
To compare with a run that had no teacher, name one for both: --opts TEACHER.NAME resnet20 TEACHER.WEIGHTS
digits/vanilla_resnet20.
"""

from classification.studies.correlation import NAME, compare, write_comparison
from classification.studies.runs import load_runs, parser
from kd_det.common.errors import one_line_errors


def main() -> None:
    args = parser(__doc__, NAME, 2).parse_args()
    with one_line_errors():
        runs = load_runs(args)
        results = compare(*runs)
        files = write_comparison(args.output_dir, results, runs[0])
    for result in results:
        print(f"{result['run']}: mean |difference| {result['mean']:.4f}, largest {result['max']:.4f}")
    print(f"wrote {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
