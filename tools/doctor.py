#!/usr/bin/env python3
"""Find why a training does not work, in about a minute, and say which line to change.

    python tools/doctor.py --config-file output/cells/config.yaml
    python tools/doctor.py --config-file configs/bccd.yaml --seconds 180 MODEL.WEIGHTS model.pth

Looks at class ids and boxes, channel order and normalization, learning rate and schedule, the weights that really
loaded and what is frozen, proposals and levels, the loss of the first step, and whether four pictures can be learned by
heart. Nothing is written, and nothing is fetched.

Exit status: 0 nothing is wrong, 1 something is, 2 the config cannot be read.
"""

import argparse
import sys

from sparsercnn import load_config
from sparsercnn.doctor import Diagnosis, examine, quiet
from sparsercnn.errors import InputError


def report(diagnosis: Diagnosis) -> str:
    """The diagnosis as text."""
    lines = [diagnosis.table, ""] if diagnosis.table else []
    lines += [f"- {remark}" for remark in diagnosis.remarks]
    if not diagnosis.findings:
        return "\n".join([*lines, "", "Nothing is wrong that can be seen from here."])
    return "\n".join([*lines, "", f"{len(diagnosis.findings)} finding(s):", "", *map(str, diagnosis.findings)])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="of the training")
    parser.add_argument(
        "--seconds", type=float, default=60, help="for learning four pictures by heart, 0 for none (default: 60)"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE …", help="changes of the config")
    args = parser.parse_args(argv)
    quiet()
    try:
        diagnosis = examine(load_config(args.config_file, args.opts), args.seconds)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(diagnosis))
    return 1 if diagnosis.findings else 0


if __name__ == "__main__":
    sys.exit(main())
