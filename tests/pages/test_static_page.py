"""The page without a server: opened from a folder, it finds what the runner finds."""

import json
import shutil
import subprocess
import time

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.models import act_trained
from sparsercnn.errors import InputError
from sparsercnn.export.graph import DetectionGraph
from sparsercnn.export.onnx import describe, export_onnx
from tests.sparsercnn.models import small_model
from tools import build_web_page

PATIENCE = 180  # seconds that a page may take on a busy machine
ABOUT = {"class_names": ["a", "b", "c"], "threshold": 0.0, "min_size": 96, "max_size": 128}


def test_a_file_that_is_no_export_is_one_line(tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    onnx.save(onnx.ModelProto(), str(tmp_path / "other.onnx"))
    for name, message in (("broken", "cannot be read as an ONNX file"), ("other", "was not written by tools/export")):
        assert build_web_page.main([str(tmp_path / f"{name}.onnx"), "--output", str(tmp_path / "page")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_a_registry_that_gives_something_else_is_refused(tmp_path, monkeypatch):
    about = {"dist": {"tarball": "archive", "integrity": "sha512-AAAA"}, "license": "MIT"}
    monkeypatch.setattr(build_web_page, "_get", lambda a: b"other" if a == "archive" else json.dumps(about).encode())
    with pytest.raises(InputError, match="is damaged: its sha512 is not what it should be"):
        build_web_page.fetch_runtime()


def test_a_registry_out_of_reach_is_one_line(monkeypatch):
    monkeypatch.setattr(build_web_page, "registry", lambda: "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot fetch http://127\.0\.0\.1:9/onnxruntime-web/"):
        build_web_page.fetch_runtime()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Folder of the page of a small model."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("page")
    model = small_model()
    act_trained(model, torch.Generator().manual_seed(0))
    graph = DetectionGraph(model, "RGB")
    export_onnx(graph, folder / "model.onnx", describe(graph, ABOUT))
    try:
        build_web_page.build(folder / "model.onnx", folder / "page")
    except InputError as error:
        pytest.skip(f"the npm registry is out of reach: {error}")
    return folder


def wait_for_message(browser, holds):
    end = time.monotonic() + PATIENCE
    while not holds(browser.find_element("id", "message").text):
        assert time.monotonic() < end, browser.find_element("id", "message").text
        time.sleep(0.2)
    return browser.find_element("id", "message").text


@pytest.mark.parametrize("sizes", [(300, 420, 91, 128), (60, 90, 64, 96)])
def test_it_resizes_as_pillow_does(sizes, tmp_path):
    node = shutil.which("node")
    if not node:
        pytest.skip("node, which runs JavaScript, is missing")
    height, width, new_height, new_width = sizes
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    program = f"""
const bytes = require("fs").readFileSync(0);
process.stdout.write(Buffer.from(resize(new Uint8Array(bytes), {width}, {height}, {new_width}, {new_height})));
"""
    (tmp_path / "run.js").write_text((build_web_page.PAGE / "resize.js").read_text() + program)
    done = subprocess.run([node, str(tmp_path / "run.js")], input=pixels.tobytes(), capture_output=True, check=True)
    expected = Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BILINEAR)
    assert done.stdout == expected.tobytes()


@pytest.mark.slow
def test_it_finds_what_the_runner_finds(page, open_browser, uploads, tmp_path):
    runtime = pytest.importorskip("sparsercnn_runtime", reason="runtime/ is not installed")
    pixels = np.random.default_rng(1).integers(0, 255, (150, 210, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((420, 300)).save(tmp_path / "photo.png")
    browser = open_browser()
    browser.get((page / "page" / "index.html").as_uri())
    wait_for_message(browser, lambda text: "Loading" not in text)
    assert browser.find_element("id", "title").text == "Detect a, b, c"
    paths = [tmp_path / "photo.png", uploads["text"], uploads["huge"]]
    browser.find_element("id", "files").send_keys("\n".join(map(str, paths)))
    message = wait_for_message(browser, lambda text: "huge.png" in text and "Looking" not in text)
    assert message.splitlines() == [
        "notes.txt is no picture that this browser can read",
        "huge.png has 15000×10000 pixels, more than 40 million",
    ]
    found = browser.execute_script("return results()")
    expected = runtime.OnnxDetector(page / "model.onnx").predict(tmp_path / "photo.png")
    assert len(found) == len(expected) > 0 and {f["image_id"] for f in found} == {"photo.png"}
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["category_id"] == theirs.class_id and ours["score"] == pytest.approx(theirs.score, abs=1e-3)
        x0, y0, x1, y1 = theirs.box
        assert ours["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.5)
    assert len(browser.find_elements("css selector", "#table tr")) == len(found)
    other = open_browser()
    other.get((page / "page" / "index.html").as_uri())
    wait_for_message(other, lambda text: "Loading" not in text)
    assert other.execute_script("return results()") == [] and browser.execute_script("return results().length")
