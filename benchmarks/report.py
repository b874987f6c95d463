"""Turn the JSON files of benchmarks into Markdown tables, for README.md.

python -m benchmarks.report pooler.json matcher.json …
"""

import argparse
import json
from pathlib import Path

from .harness import environment, table


def report(files: list[Path], device: str = "cpu") -> str:
    """A section with a table for each file, titled by the file's name, after a line about this machine."""
    sections = [f"## {path.stem}\n\n{table(json.loads(path.read_text()))}\n" for path in files]
    return "\n".join([f"Measured on: {environment(device)}.\n", *sections])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--device", default="cpu", help="that the files were measured on")
    args = parser.parse_args(argv)
    print(report(args.files, args.device))


if __name__ == "__main__":
    main()
