"""Headless Chromium, and pictures that a visitor may bring: a real one, a wrong file, a huge one."""

import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

MISSING = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]


@pytest.fixture(scope="session")
def open_browser():
    """A function that opens a new browser, with a profile of its own: another visitor."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium, which drives a browser, is missing")
    if MISSING:
        pytest.skip(f"{' and '.join(MISSING)} missing: apt-get install chromium chromium-driver")
    opened = []

    def open_browser():
        options = webdriver.ChromeOptions()
        # In a container, root has no sandbox and little shared memory.
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1200"):
            options.add_argument(argument)
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        opened.append(webdriver.Chrome(options=options, service=service))
        return opened[-1]

    yield open_browser
    for browser in opened:
        browser.quit()


@pytest.fixture(scope="session")
def uploads(tmp_path_factory):
    """Paths by what they are: "picture", "text", "huge" (in pixels)."""
    folder = tmp_path_factory.mktemp("uploads")
    pixels = np.random.default_rng(0).integers(0, 80, (64, 64, 3), dtype=np.uint8)
    pixels[20:40, 10:40] = 220
    Image.fromarray(pixels).save(folder / "picture.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "huge.png").write_bytes(huge_png(15_000, 10_000))
    return {"picture": folder / "picture.png", "text": folder / "notes.txt", "huge": folder / "huge.png"}


def huge_png(width: int, height: int) -> bytes:
    """A small file of many black pixels, one bit each."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return len(content).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((1 + -(-width // 8)) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
