"""demo_web.py in a browser: pictures of two visitors, a wrong file and a huge one, each with an answer of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import demo_web
from sparsercnn import Detector
from sparsercnn.detections import Detections
from sparsercnn.visualization.page import CheckpointModel, Page

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds that a page may take on a busy machine


@pytest.fixture(scope="module")
def model(trained):
    return str(trained / "model_final.pth")


def test_the_page_finds_what_the_detector_finds(model, uploads, tmp_path):
    page = Page(CheckpointModel(model))
    server = demo_web.Server(page, tmp_path, max_pixels=10**6, max_bytes=10**6)
    answer, message = server.detect([str(path) for path in uploads.values()], None)
    assert [f.name for f in answer.found] == ["picture.png"]
    lines = message.splitlines()
    assert lines[0].startswith("cannot read image notes.txt: it is damaged, or no image")
    assert lines[1].startswith("cannot read image huge.png: it has 15000×10000 pixels, more than")
    expected = Detector.from_checkpoint(model).predict(uploads["picture"], threshold=0.0)
    drawn, rows, path = server.show(answer, threshold=0.0, stage=2, color_by="class")
    assert len(rows) == len(expected) and rows[0][:2] == ["picture.png", expected[0].name]
    assert Path(path).read_text() == page.to_coco(answer.found, 0.0)
    assert isinstance(expected, Detections) and drawn[0][0].shape == expected.draw().shape
    by_level = page.draw(answer.found[0], 0.0, 1, "level")
    assert by_level.shape[0] > drawn[0][0].shape[0]  # the legend


def test_a_file_of_too_many_bytes_is_not_read(model, uploads, tmp_path):
    server = demo_web.Server(Page(CheckpointModel(model)), tmp_path, max_pixels=10**6, max_bytes=100)
    answer, message = server.detect([str(uploads["picture"])], None)
    assert answer.found == [] and message == "picture.png is larger than 0 MB"
    assert server.show(answer, 0.5, 2, "class") == ([], [], None)
    assert server.detect(None, None)[1] == "Choose a picture first."


def test_no_model_is_one_line(tmp_path, capsys):
    assert demo_web.main([str(tmp_path / "none.pth")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


@pytest.fixture(scope="module")
def address(model, tmp_path_factory):
    pytest.importorskip("gradio", reason="gradio, which serves the page, is missing")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "TMPDIR": str(tmp_path_factory.mktemp("page"))}
    command = [sys.executable, str(ROOT / "demo_web.py"), model, "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        wait(lambda: answers(f"http://127.0.0.1:{port}"))
        yield f"http://127.0.0.1:{port}"
        process.terminate()


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def wait(holds):
    end = time.monotonic() + PATIENCE
    while not (result := holds()):
        assert time.monotonic() < end, "the page does not get on"
        time.sleep(0.2)
    return result


class Visitor:
    """Somebody with a browser."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        wait(lambda: self.all("#files input[type=file]") and self.all("#detect"))

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def bring(self, *paths):
        self.all("#files input[type=file]")[0].send_keys("\n".join(map(str, paths)))
        names = [Path(path).stem for path in paths]
        wait(lambda: self.all("#files .file-preview") and all(n in self.all("#files")[0].text for n in names))
        self.all("button#detect, #detect button")[0].click()

    @property
    def message(self):
        return self.all("#message")[0].text

    @property
    def table(self):
        return self.all("#table")[0].text


@pytest.mark.slow
def test_two_visitors_and_what_they_bring(address, open_browser, uploads, tmp_path):
    first, second = Visitor(open_browser(), address), Visitor(open_browser(), address)
    first.bring(uploads["picture"], uploads["text"], uploads["huge"])
    wait(lambda: first.all("#found img"))
    assert "cannot read image notes.txt" in first.message and "cannot read image huge.png" in first.message
    second.bring(uploads["text"])
    wait(lambda: "cannot read image notes.txt" in second.message)
    assert not second.all("#found img") and "huge.png" not in second.message
    assert first.all("#found img")


@pytest.mark.slow
def test_other_files_of_the_machine_stay_its_own(address):
    for path in (ROOT / "pyproject.toml", Path("/etc/passwd")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}", timeout=30)
        assert refused.value.code in (403, 404)
