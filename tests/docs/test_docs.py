"""The documents: links lead somewhere, commands exist with their options, code compiles, the first of it runs."""

import ast
import importlib.util
import re
import textwrap
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tools import build_site

ROOT = Path(__file__).parents[2]
PAGES = build_site.all_pages()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(path, language):
    return [text for kind, text in BLOCK.findall((ROOT / path).read_text()) if kind == language]


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_to_files_and_to_headings(path, tmp_path):
    text = build_site.with_links_of_site(path, PAGES, tmp_path)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, part = target.partition("#")
        if part and "://" not in target:
            (page,) = [p for p in PAGES if build_site.page_name(p) == name] if name else [path]
            headings = re.findall(r"^#+ (.*)", (ROOT / page).read_text(), re.MULTILINE)
            assert part in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("path", PAGES)
def test_code_is_code(path):
    for block in blocks(path, "python"):
        ast.parse(textwrap.dedent(block))
    for block in blocks(path, "yaml"):
        yaml.safe_load(block)


@pytest.mark.parametrize("path", PAGES)
def test_commands_exist_with_their_options(path):
    lines = [line for block in blocks(path, "") for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        words = line.partition("#")[0].split()
        if "python" not in words:
            continue
        name, *arguments = words[words.index("python") + 1 :]
        source = program(arguments.pop(0) if name == "-m" else name)
        for option in [a.partition("=")[0] for a in arguments if a.startswith("--")]:
            assert source is None or f'"{option}"' in source or option in SHARED_OPTIONS, f"{option} in: {line}"
        for config in [a for a in arguments if a.startswith("configs/")]:
            assert config == "configs/mine.yaml" or (ROOT / config).exists(), line


def program(name):
    """The text of a program, None for one of another package or for a name that stands for several."""
    if name.endswith(".py"):
        text = (ROOT / name).read_text()
        common = (ROOT / "tools" / "trainings.py").read_text() if "from tools.trainings import" in text else ""
        return text + common
    if not name.startswith(("sparsercnn", "benchmarks", "tools")) or name in ("benchmarks.NAME", "benchmarks.$name"):
        return None
    spec = importlib.util.find_spec(name)
    file = Path(spec.origin)
    return (file.with_name("__main__.py") if spec.submodule_search_locations else file).read_text()


# Of detectron2's and of the benchmarks' argument parsers.
SHARED_OPTIONS = {
    *("--config-file", "--resume", "--eval-only", "--num-gpus", "--num-machines", "--machine-rank", "--dist-url"),
    *("--json", "--profile", "--repeats", "--device"),
}


def test_the_api_of_the_readme_runs_as_it_is_printed(trained, tmp_path, monkeypatch):
    code = next(block for block in blocks("README.md", "python") if "from_checkpoint" in block)
    (tmp_path / "output" / "quickstart").mkdir(parents=True)
    (tmp_path / "output" / "quickstart" / "model_final.pth").symlink_to(trained / "model_final.pth")
    Image.new("RGB", (90, 60), "gray").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert "objects on a picture of 90×60 pixels" in repr(names["found"])


def test_a_link_that_leads_nowhere_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(build_site, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("[a](b.md)\n```\n[no](link)\n```\n")
    with pytest.raises(build_site.InputError, match=r"README\.md links to b\.md, which is not there"):
        build_site.with_links_of_site("README.md", {}, tmp_path)


def test_a_folder_of_something_else_is_not_replaced(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("")
    assert build_site.main(["--output", str(tmp_path)]) == 2
    assert "holds no site" in capsys.readouterr().err and (tmp_path / "precious.txt").is_file()


@pytest.mark.slow
def test_the_site_is_built_without_network(tmp_path, capsys, monkeypatch):
    pytest.importorskip("zensical", reason="zensical, which builds the site, is missing")
    pytest.importorskip("mkdocstrings")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert build_site.main(["--output", str(tmp_path / "site")]) == 0
    pages = {path.name for path in (tmp_path / "site" / "site").glob("*.html")}
    assert pages >= {
        "index.html",
        "necks.html",
        "export.html",
        "model_zoo.html",
        "api-sparsercnn.html",
        "api-necks.html",
    }
    reference = (tmp_path / "site" / "site" / "api-sparsercnn.html").read_text()
    assert "Finds objects on pictures, in three lines." in reference
    assert "//fonts." not in reference and "cdn" not in reference
