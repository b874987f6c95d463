"""Image files damaged at random: every one is read right, or refused in a line that names the file.

    python -m tests.reliability.images --count 2000 --seed 0

Few formats have checksums. Where one without them still describes a picture after the damage, that picture is what is
read, and no reader can know better; these cases are counted apart.
"""

import argparse
import io
import json
import random
import resource
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from sparsercnn.data.images import read_image
from sparsercnn.errors import InputError

OUTCOMES = ("read", "read_as_altered", "refused", "traces", "silent_wrong")
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".webp", ".gif", ".bmp", "", ".txt")
# Damage after which a file must be refused or show what it showed before; of formats with checksums, any damage.
CUT = "cut"
HARMLESS = "harmless"
CHECKED = ("png", "png 16", "png palette", "png alpha", "apng")

Pool = dict[str, tuple[bytes, np.ndarray]]
"""{kind: (file, (H, W, 3) picture in it)}."""


def run(count: int, seed: int, folder: Path) -> dict[str, int]:
    """Damage and read image files.

    Args:
        count: how many.
        seed: of pictures and damage.
        folder: for one file after the other.

    Returns:
        How many there were of "read" (the undamaged picture), "read_as_altered" (see above), "refused" (in one line
        that names the file), "traces" (another exception), "silent_wrong" (another picture, though a checksum or the
        end of the file is wrong), and "peak_mib", how far the most memory that this process ever had rose. Traces and
        wrong ones are explained on standard error.
    """
    pool = make_pool(seed)
    outcomes = Counter(dict.fromkeys(OUTCOMES, 0))
    before = peak_mib()
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        kind = rng.choice(list(pool))
        content, damage = damaged(rng, kind, pool)
        path = folder / f"picture{rng.choice(SUFFIXES)}"
        path.write_bytes(content)
        outcome, why = judge(path, pool[kind][1], damage == CUT or kind in CHECKED, damage == HARMLESS)
        path.unlink()
        outcomes[outcome] += 1
        if outcome in OUTCOMES[3:]:
            print(f"{outcome}: seed {seed}, number {number}, {kind}: {why}", file=sys.stderr)
    return {**outcomes, "peak_mib": peak_mib() - before}


def peak_mib() -> int:
    """The most memory that this process had until now, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def make_pool(seed: int) -> Pool:
    """A picture in every kind of file that is read; `read_image`'s own tests tell that it reads them right."""
    rng = np.random.default_rng(seed)
    rgb = np.asarray(Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize((80, 64)))
    gray = rgb[..., 0].copy()
    sixteen = gray.astype(np.uint16) * 256 + 99
    alpha = np.dstack([rgb, gray])

    def frames() -> dict:
        return {"save_all": True, "append_images": [Image.fromarray(255 - rgb)]}  # a new one: saving leaves marks on it

    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[Any, str, dict]] = {
        "jpeg": (rgb, "JPEG", {}),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True, "quality": 95}),
        "jpeg gray": (gray, "JPEG", {}),
        "jpeg cmyk": (Image.fromarray(rgb).convert("CMYK"), "JPEG", {}),
        "jpeg sideways": (rgb, "JPEG", {"exif": exif}),
        "mpo": (rgb, "MPO", frames()),
        "png": (rgb, "PNG", {}),
        "png 16": (sixteen, "PNG", {}),
        "png palette": (Image.fromarray(rgb).quantize(16), "PNG", {"transparency": bytes(range(16))}),
        "png alpha": (alpha, "PNG", {"compress_level": 0}),
        "apng": (rgb, "PNG", frames()),
        "gif": (Image.fromarray(rgb).quantize(32), "GIF", {}),
        "bmp": (rgb, "BMP", {}),
        "ppm": (rgb, "PPM", {}),
        "webp": (rgb, "WEBP", {}),
        "webp lossless": (rgb, "WEBP", {"lossless": True}),
        "webp animated": (rgb, "WEBP", frames()),
        "tiff": (rgb, "TIFF", {}),
        "tiff lzw": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate": (rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff jpeg": (rgb, "TIFF", {"compression": "jpeg"}),
        "tiff 16": (sixteen, "TIFF", {}),
        "tiff 1 bit": (Image.fromarray(gray > 99), "TIFF", {"compression": "group4"}),
        "tiff pages": (rgb, "TIFF", frames()),
        "jpeg 2000": (rgb, "JPEG2000", {}),
    }
    if features.check("avif"):
        kinds["avif"] = (rgb, "AVIF", {})
    return {name: _encode(*kind) for name, kind in kinds.items()}


def _encode(picture: Any, file_format: str, options: dict) -> tuple[bytes, np.ndarray]:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, file_format, **options)
    with tempfile.NamedTemporaryFile() as file:
        file.write(buffer.getvalue())
        file.flush()
        return buffer.getvalue(), read_image(file.name, "RGB")


def damaged(rng: random.Random, kind: str, pool: Pool) -> tuple[bytes, str]:
    """The file of one kind with random damage, and what sort of damage that is."""
    content = pool[kind][0]
    damage = rng.choice(DAMAGES)
    if damage is _append:
        return damage(rng, content, pool), HARMLESS
    return damage(rng, content, pool), CUT if damage is _cut else damage.__name__


def _append(rng: random.Random, content: bytes, pool: Pool) -> bytes:
    """Nothing, or something behind the end, where no reader looks."""
    return content + rng.choice((b"", b"", b"\0" * 40, b"<html>", rng.choice(list(pool.values()))[0]))


def _cut(rng: random.Random, content: bytes, pool: Pool) -> bytes:
    return content[: rng.choice((rng.randrange(len(content)), len(content) - rng.randint(1, 20)))]


def _flip(rng: random.Random, content: bytes, pool: Pool) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 20))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_at_the_beginning(rng: random.Random, content: bytes, pool: Pool) -> bytes:
    return _flip(rng, content[:100], pool) + content[100:]


def _overwrite(rng: random.Random, content: bytes, pool: Pool) -> bytes:
    place, length = rng.randrange(len(content)), rng.choice((1, 4, 16, 300))
    filling = rng.choice((b"\0", b"\xff", rng.randbytes(1))) * length
    return content[:place] + filling + content[place + length :]


def _enlarge(rng: random.Random, content: bytes, pool: Pool) -> bytes:
    """Put a huge number where formats keep sizes, offsets and counts."""
    number, order = rng.choice((60000, 65535, 2**31 - 1, 2**32 - 1)), rng.choice(("big", "little"))
    value = number.to_bytes(4, order) if rng.random() < 0.5 else (number & 65535).to_bytes(2, order)
    place = rng.randrange(min(len(content), 200))
    return content[:place] + value + content[place + len(value) :]


def _take_out(rng: random.Random, content: bytes, pool: Pool) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.choice((1, 2, 50)) :]


def _repeat(rng: random.Random, content: bytes, pool: Pool) -> bytes:
    place = rng.randrange(len(content))
    return content[: place + rng.choice((1, 2, 50))] + content[place:]


def _join(rng: random.Random, content: bytes, pool: Pool) -> bytes:
    """The beginning of one file and the end of another."""
    other = rng.choice(list(pool.values()))[0]
    return content[: rng.randrange(len(content))] + other[rng.randrange(len(other)) :]


def _other_file(rng: random.Random, content: bytes, pool: Pool) -> bytes:
    return rng.choice(
        (b"", b"\0" * 999, b"<html></html>", b"<svg/>", b"%PDF-1.4", b"%!PS\nshowpage", b"GIF89a", rng.randbytes(500))
    )


DAMAGES: tuple[Callable[[random.Random, bytes, Pool], bytes], ...] = (
    _append, _cut, _cut, _flip, _flip_at_the_beginning, _overwrite, _enlarge, _take_out, _repeat, _join, _other_file,
)  # fmt: skip


def judge(path: Path, expected: np.ndarray, must_be_right: bool, must_be_read: bool) -> tuple[str, str]:
    """The outcome of reading a file, and why.

    Args:
        path: of the file.
        expected: the picture before the damage.
        must_be_right: it is this picture or none.
        must_be_read: the damage does no harm.
    """
    try:
        image = read_image(str(path), "RGB")
    except InputError as error:
        message = str(error)
        if must_be_read or not (message.isprintable() and str(path) in message and len(message) < 500):
            return "silent_wrong", message
        return "refused", message
    except Exception:
        return "traces", traceback.format_exc()
    if np.array_equal(image, expected):
        return "read", ""
    is_image = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and min(image.shape) > 0
    if must_be_right or must_be_read or not is_image:
        return "silent_wrong", f"another picture, {image.dtype} {image.shape}"
    return "read_as_altered", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(args.count, args.seed, Path(folder))))


if __name__ == "__main__":
    main()
