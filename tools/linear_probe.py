#!/usr/bin/env python
"""What frozen student features are worth on other data: a linear classifier on them, top-1, one row a run.

python tools/linear_probe.py digits/vanilla_resnet8 digits/dkd_resnet20_resnet8
python tools/linear_probe.py cifar100/kd_res32x4_res8x4 cifar100/dkd_res32x4_res8x4 --on stl10 tiny_imagenet

Writes linear_probe.json, .csv, .png and .svg. digits_rotated_inverted is embedded; stl10 and tiny_imagenet are expected
below --data-root as published (stl10_binary/, tiny-imagenet-200/) and seen at the size of the run's own images.
"""

from classification.studies.linear_probe import NAME, probe_run, probe_table, write_probes
from classification.studies.runs import load_runs, parser
from classification.studies.transfer_data import DOMAINS, read_domain
from kd_det.common.errors import one_line_errors


def main() -> None:
    options = parser(__doc__, NAME, "+")
    options.add_argument("--on", nargs="+", choices=DOMAINS, default=["digits_rotated_inverted"], metavar="DATA",
                         help=f"data sets: {', '.join(DOMAINS)} (default digits_rotated_inverted)")  # fmt: skip
    options.add_argument("--data-root", default="datasets", metavar="DIR", help="where they are (default datasets)")
    args = options.parse_args()
    with one_line_errors():
        domains = {name: read_domain(name, args.data_root) for name in args.on}
        rows = [probe_run(run, domains) for run in load_runs(args)]
        files = write_probes(args.output_dir, rows)
    print(probe_table(rows))
    print(f"wrote {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
