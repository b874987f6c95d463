#!/usr/bin/env python3
"""The documentation as a site: the Markdown files of this repository, and an API reference from the docstrings.

    python tools/build_site.py            # build/site/site/index.html
    python tools/build_site.py --output /srv/docs

Files that a page links to and that are no pages come along as they are, so that no link leaves the site for a file that
is not there. Nothing is fetched.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from sparsercnn.errors import InputError

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "Get started",
    "datasets/README.md": "Train on your data",
    "docs/necks.md": "Necks",
    "docs/add_a_neck.md": "Add a neck",
    "docs/detectors.md": "Detectors and routing",
    "docs/accuracy.md": "Accuracy",
    "benchmarks/README.md": "Speed",
    "sparsercnn/fast/README.md": "How it is fast",
    "docs/export.md": "Export and pages",
    "runtime/README.md": "Without torch",
    "configs/README.md": "Configuration",
    "docs/model_zoo.md": "Model zoo",
    "docs/troubleshooting.md": "Troubleshooting",
    "detectron2_lite/README.md": "The detectron2 subset",
    "CONTRIBUTING.md": "Contributing",
    "CHANGELOG.md": "Changelog",
}
"""Pages and their titles, in the order of the site. Other files in docs/ follow them."""
PACKAGES = ("sparsercnn", "necks", "efficientdet", "runtime/sparsercnn_runtime")
CONFIG = "zensical.toml"
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
SETTINGS = """
[project]
site_name = "sparsercnn"
docs_dir = "docs"
site_dir = "site"
use_directory_urls = false
nav = [{nav}]

[project.theme]
font = false

[project.plugins.mkdocstrings.handlers.python]
paths = [{paths}]

[project.plugins.mkdocstrings.handlers.python.options]
docstring_style = "google"
show_source = false
heading_level = 2
"""


def build(output: Path) -> Path:
    """Write the sources of the site into a folder and build it there; returns its first page.

    Raises:
        InputError: a link leads nowhere, or the generator is missing or complains.
    """
    docs = output / "docs"
    if output.exists() and not (output / CONFIG).is_file():
        raise InputError(f"--output {output} is there already and holds no site, so that it is not replaced")
    shutil.rmtree(output, ignore_errors=True)
    docs.mkdir(parents=True)
    pages = all_pages()
    for path in pages:
        (docs / page_name(path)).write_text(with_links_of_site(path, pages, docs))
    reference = write_reference(docs)
    chapters = nav_entries((title, page_name(path)) for path, title in pages.items())
    nav = f'{chapters}, {{ "API reference" = [{nav_entries(reference)}] }}'
    paths = ", ".join(f'"{path}"' for path in (ROOT, ROOT / "runtime"))
    (output / CONFIG).write_text(SETTINGS.format(nav=nav, paths=paths))
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=output, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        if "No module named zensical" in lines[-1]:
            raise InputError("the site needs zensical and mkdocstrings: pip install 'sparsercnn[docs]'")
        raise InputError("the site was not built:\n" + "\n".join(f"  {line}" for line in lines))
    return output / "site" / "index.html"


def nav_entries(pages: Iterable[tuple[str, str]]) -> str:
    """Titles and names of pages as entries of a list in TOML."""
    return ", ".join(f'{{ "{title}" = "{name}" }}' for title, name in pages)


def all_pages() -> dict[str, str]:
    """{path in the repository: title}: those of `PAGES` that are there, and other files in docs/ by their heading."""
    pages = {path: title for path, title in PAGES.items() if (ROOT / path).is_file()}
    for file in sorted((ROOT / "docs").glob("*.md")):
        heading = file.read_text().partition("\n")[0].lstrip("# ")
        pages.setdefault(file.relative_to(ROOT).as_posix(), heading)
    return pages


def page_name(path: str) -> str:
    """Name of a page on the site, where all lie in one folder."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/").replace("/README.md", ".md").replace("/", "-")


def with_links_of_site(path: str, pages: dict[str, str], docs: Path) -> str:
    """The text of a page with its links as they are on the site; files that it links to are copied there.

    Raises:
        InputError: a link leads nowhere.
    """

    def replace(match: re.Match) -> str:
        target, _, part = match[2].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        file = os.path.normpath(os.path.join(os.path.dirname(path), target))
        if (ROOT / file / "README.md").is_file():
            file = f"{file}/README.md"
        if not (ROOT / file).exists():
            raise InputError(f"{path} links to {match[2]}, which is not there")
        if file in pages:
            return f"{match[1]}{page_name(file)}{'#' if part else ''}{part}{match[3]}"
        return f"{match[1]}{copy(file, docs).relative_to(docs).as_posix()}{match[3]}"

    # What looks like a link in a block of code is none.
    parts = re.split(r"(```.*?```)", (ROOT / path).read_text(), flags=re.DOTALL)
    return "".join(part if i % 2 else LINK.sub(replace, part) for i, part in enumerate(parts))


def copy(file: str, docs: Path) -> Path:
    """Copy what a page links to into the site, of a folder the list of its files; returns where it is then."""
    source, target = ROOT / file, docs / "files" / file
    if source.is_dir() or source.suffix == ".md":  # of Markdown, the generator would make a page
        target = target.with_name(f"{target.name}.txt")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        target.write_text("\n".join(sorted(path.name for path in source.iterdir())))
    else:
        shutil.copy(source, target)
    return target


def write_reference(docs: Path) -> list[tuple[str, str]]:
    """A page for each folder of modules; returns titles and names of the pages."""
    modules: dict[str, list[str]] = {}
    for package in PACKAGES:
        base = (ROOT / package).parent
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(base).with_suffix("").parts
            if parts[-1] != "__main__":
                module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                modules.setdefault(".".join(parts[:-1]), []).append(module)
    for folder, names in modules.items():
        sections = "\n".join(f"::: {name}\n" for name in names)
        (docs / f"api-{folder}.md").write_text(f"# {folder}\n\n{sections}")
    return [(folder, f"api-{folder}.md") for folder in modules]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "site", help="folder, made anew (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        print(build(args.output.absolute()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
