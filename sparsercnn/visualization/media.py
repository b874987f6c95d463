"""Pictures and videos in and out: what a user named, where results go, and one clear error when that cannot be."""

import glob
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..data.images import read_image
from ..errors import InputError

# Drawing takes 120 bytes for each pixel.
MAX_DRAWN_PIXELS = 2**24
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
VIDEO_CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
DEFAULT_FRAMES_PER_SECOND = 25.0  # for videos that do not say
ESCAPE = 27


class Stopped(Exception):
    """The user closed the show."""


def find_pictures(names: list[str]) -> list[Path]:
    """The pictures that files, folders (not their sub-folders) and globs name, in this order, each once.

    Raises:
        InputError: a file is missing, a folder holds no picture, or a glob matches nothing.
    """
    found = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            matches = sorted(p for p in _list(path) if p.suffix.lower() in PICTURE_SUFFIXES)
            problem = f"folder {name} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))})"
        elif path.is_file():
            matches, problem = [path], ""
        elif glob.has_magic(name):
            matches = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())
            problem = f"no file matches {name}"
        else:
            matches, problem = [], f"there is no file or folder {name}"
        if not matches:
            raise InputError(f"--input: {problem}")
        found.update(dict.fromkeys(matches))
    return list(found)


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(f"--input: cannot list folder {folder} ({error.strerror})") from error


def read_picture(path: Path, max_pixels: int) -> np.ndarray:
    """Read a picture as training reads images: (H, W, 3) uint8 RGB. One too large to draw is made smaller.

    Args:
        path: of the file.
        max_pixels: a picture of more is refused before it is decoded.

    Raises:
        InputError: see `read_image`.
    """
    picture = read_image(str(path), "RGB", max_pixels)
    height, width = picture.shape[:2]
    scale = math.sqrt(MAX_DRAWN_PIXELS / (height * width))
    if scale >= 1:
        return picture
    size = max(int(width * scale), 1), max(int(height * scale), 1)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def plan_outputs(pictures: list[Path], output: str | None) -> list[Path | None]:
    """The file for each result; folders are made. A single picture may go to a named file, others go to a folder.

    Raises:
        InputError: the folder is a file, or two results, or a result and a picture, would be the same file, or a link
            in the folder leads a result out of it.
    """
    if output is None:
        return [None] * len(pictures)
    target = Path(output)
    names_file = target.suffix.lower() in PICTURE_SUFFIXES and not target.is_dir()
    if names_file and len(pictures) > 1:
        raise InputError(f"--output {output} is one picture, but there are {len(pictures)}: name a folder")
    planned = [target] if names_file else [target / picture.name for picture in pictures]
    _make_folder(target.parent if names_file else target)
    origin: dict[Path, Path] = {}
    for picture, path in zip(pictures, planned, strict=True):
        if path in origin:
            raise InputError(f"{origin[path]} and {picture} would both become {path}: draw them in two runs")
        if path.resolve() == picture.resolve():
            raise InputError(f"--output {output} would overwrite {picture}: name another folder")
        if path.is_symlink() and not names_file:
            raise InputError(f"--output: {path} is a link to {path.resolve()}, which would be overwritten; remove it")
        origin[path] = picture
    return list(planned)


def plan_video_output(video: Path, output: str | None) -> Path | None:
    """The file for the drawn video: `output` itself, or NAME.mp4 in the folder `output`, which is made.

    Raises:
        InputError: the folder is a file, or the video would be overwritten.
    """
    if output is None:
        return None
    target = Path(output)
    if target.suffix.lower() in VIDEO_CODECS and not target.is_dir():
        _make_folder(target.parent)
    else:
        _make_folder(target)
        target = target / f"{video.stem}.mp4"
    if target.resolve() == video.resolve():
        raise InputError(f"--output {output} would overwrite {video}: name another file")
    return target


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"--output: {folder} must be a folder, but a file of that name is in the way") from error
    except OSError as error:
        raise InputError(f"--output: cannot make folder {folder} ({error.strerror})") from error


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a (H, W, 3) uint8 RGB picture in the format that the suffix names.

    Raises:
        InputError: the file cannot be written, or there is no such format.
    """
    try:
        Image.fromarray(picture).save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--output: cannot write {path}: {error}") from error


class VideoReader:
    """The frames of a video, (H, W, 3) uint8 RGB; its length is what the file says, for progress only.

    Raises:
        InputError: the file is missing, or not a video that OpenCV can decode.
    """

    def __init__(self, name: str):
        self.path = Path(name)
        if not self.path.is_file():
            raise InputError(f"--video-input: there is no file {name}")
        self._capture = cv2.VideoCapture(name)
        is_read, self._first = self._capture.read()
        if not is_read:
            raise InputError(f"--video-input: {name} cannot be read as a video")
        self.frames_per_second = self._capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FRAMES_PER_SECOND

    def __len__(self) -> int:
        return max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        is_read, frame = True, self._first
        while is_read:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            is_read, frame = self._capture.read()
        self._capture.release()


class VideoWriter:
    """Writes frames of one size; a context manager, so that an interrupted video is still playable.

    Args:
        path: of the video, its suffix one of `VIDEO_CODECS`; None to write nothing.
        frames_per_second: at which it is to be played.
    """

    def __init__(self, path: Path | None, frames_per_second: float):
        self._path = path
        self._frames_per_second = frames_per_second
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._writer:
            self._writer.release()

    def write(self, frame: np.ndarray) -> None:
        """Append a (H, W, 3) uint8 RGB frame.

        Raises:
            InputError: the file cannot be written.
        """
        if self._path is None:
            return
        if self._writer is None:
            codec = cv2.VideoWriter.fourcc(*VIDEO_CODECS[self._path.suffix.lower()])
            size = frame.shape[1], frame.shape[0]
            self._writer = cv2.VideoWriter(str(self._path), codec, self._frames_per_second, size)
            if not self._writer.isOpened():
                raise InputError(f"--output: cannot write a video of {size[0]}x{size[1]} pixels to {self._path}")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))


def show(picture: np.ndarray, title: str, wait: bool) -> None:
    """Show a picture in a window, until a key is pressed if `wait`.

    Raises:
        Stopped: Esc or q was pressed.
        InputError: there is no display, or OpenCV has no windows.
    """
    try:
        cv2.imshow(title, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(0 if wait else 1) & 0xFF
        if wait:
            cv2.destroyWindow(title)
    except cv2.error as error:
        raise InputError(
            "--show needs a display and an OpenCV with windows (pip install opencv-python instead of "
            "opencv-python-headless); use --output otherwise"
        ) from error
    if key in (ESCAPE, ord("q")):
        raise Stopped
