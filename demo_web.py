#!/usr/bin/env python3
"""A page to try a detector: pictures in, boxes out, from any browser on this machine.

    python demo_web.py output/quickstart/model_final.pth --examples datasets/shapes/val
    python demo_web.py model.onnx --port 7861

MODEL is a checkpoint that was trained here or an exported file (.onnx, .xml), which needs runtime/ installed. The page
is for this machine alone unless --host says otherwise. Pictures are kept, in a folder of their own, until it ends.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sparsercnn.errors import InputError
from sparsercnn.visualization.media import find_pictures, read_picture
from sparsercnn.visualization.page import Found, Page, open_model

if TYPE_CHECKING:
    import gradio

MEGABYTE = 2**20


class Server:
    """Reads what visitors upload, and gives back what the page shows.

    Args:
        page: finds and draws.
        folder: for downloads, removed by whoever made it.
        max_pixels: a picture of more is refused before it is decoded.
        max_bytes: a file of more is refused before it is read.
        max_pictures: that may be looked at together.
    """

    def __init__(self, page: Page, folder: Path, max_pixels: int, max_bytes: int, max_pictures: int = 16):
        self.page, self.folder = page, folder
        self.max_pixels, self.max_bytes, self.max_pictures = max_pixels, max_bytes, max_pictures

    def read(self, files: list[str], snapshot: np.ndarray | None) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        """Names and pictures of all that can be read, and a line for each file that cannot."""
        pictures, problems = [] if snapshot is None else [("webcam", snapshot)], []
        for file in files[: self.max_pictures]:
            name = Path(file).name
            try:
                if os.path.getsize(file) > self.max_bytes:
                    raise InputError(f"{name} is larger than {self.max_bytes // MEGABYTE} MB")
                pictures.append((name, read_picture(Path(file), self.max_pixels)))
            except InputError as error:
                problems.append(str(error).replace(str(file), name))
        if len(files) > self.max_pictures:
            problems.append(f"only the first {self.max_pictures} of {len(files)} pictures are looked at")
        return pictures, problems

    def detect(self, files: list[str] | None, snapshot: np.ndarray | None) -> tuple["Answer", str]:
        """What was found on each picture, and what to tell the visitor."""
        pictures, problems = self.read(files or [], snapshot)
        if not pictures and not problems:
            problems = ["Choose a picture first."]
        found = [self.page.find(name, picture) for name, picture in pictures]
        return Answer(found, Path(tempfile.mkdtemp(dir=self.folder)) / "detections.json"), "  \n".join(problems)

    def show(self, answer: "Answer | None", threshold: float, stage: float, color_by: str) -> tuple:
        """The drawn pictures, the table of detections, and a file of COCO results for download (None without any)."""
        if answer is None or not answer.found:
            return [], [], None
        drawn = [(self.page.draw(f, threshold, int(stage), color_by), f.name) for f in answer.found]
        answer.download.write_text(self.page.to_coco(answer.found, threshold))
        return drawn, self.page.table(answer.found, threshold), str(answer.download)


@dataclass
class Answer:
    """What a visitor gets.

    Attributes:
        found: on each picture.
        download: file for the detections that are shown.
    """

    found: list[Found]
    download: Path


def build(server: Server, examples: list[Path]) -> "gradio.Blocks":
    """The page."""
    import gradio

    page = server.page
    with gradio.Blocks(title=page.title, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gradio.Markdown(f"# {page.title}")
        answer = gradio.State(None, time_to_live=3600)
        with gradio.Row():
            with gradio.Column(scale=1):
                files = gradio.File(label="Pictures", file_count="multiple", elem_id="files")
                with gradio.Accordion("Webcam", open=False):
                    snapshot = gradio.Image(label="Webcam", sources=["webcam"], type="numpy")
                start = gradio.Button("Detect", variant="primary", elem_id="detect")
                message = gradio.Markdown(elem_id="message")
                threshold = gradio.Slider(0, 1, round(page.threshold, 3), step=0.001, label="Lowest score")
                stage = gradio.Slider(
                    1, max(page.stages, 1), page.stages or 1, step=1, label="Refinement stage", visible=page.stages > 1
                )
                color_by = gradio.Radio(
                    [("class", "class"), ("pyramid level read", "level")],
                    value="class",
                    label="Color boxes by",
                    visible=page.stages > 0,
                )
                if examples:
                    gradio.Examples(
                        [[[str(path)]] for path in examples], [files], label="Examples", cache_examples=False
                    )
            with gradio.Column(scale=2):
                gallery = gradio.Gallery(label="Found", columns=2, object_fit="contain", elem_id="found", format="png")
                table = gradio.Dataframe(
                    headers=list(page.headers), label="Detections", elem_id="table", interactive=False
                )
                download = gradio.DownloadButton("Download as COCO JSON", elem_id="download")
        shown = [gallery, table, download]
        settings = [answer, threshold, stage, color_by]
        # One at a time: each takes all processors.
        found_now = start.click(
            server.detect, [files, snapshot], [answer, message], concurrency_limit=1, concurrency_id="model"
        )
        found_now.then(server.show, settings, shown)
        for control in (threshold, stage, color_by):
            control.change(server.show, settings, shown, show_progress="hidden")
    return blocks


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line (that of the process if None)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, or an exported .onnx or .xml file")
    parser.add_argument("--examples", nargs="+", default=[], metavar="PATH", help="pictures or folders to offer")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s, for this machine alone)")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument("--max-upload", type=int, default=20, metavar="MB", help="largest file (default: %(default)s)")
    parser.add_argument(
        "--max-pixels", type=int, default=40, metavar="MILLIONS", help="largest picture (default: %(default)s)"
    )
    return parser.parse_args(argv)


def serve(args: argparse.Namespace) -> None:
    """Serve the page until the process is stopped."""
    page = Page(open_model(args.model))
    # Before gradio is imported, which otherwise shares a folder with other programs and asks its makers for news.
    with tempfile.TemporaryDirectory(prefix="sparsercnn-page-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        try:
            import gradio
        except ImportError as error:
            raise InputError("the page needs gradio: pip install 'sparsercnn[web]'") from error
        examples = find_pictures(args.examples)[:8] if args.examples else []
        server = Server(page, Path(folder), args.max_pixels * 10**6, args.max_upload * MEGABYTE)
        blocks = build(server, examples)
        try:
            blocks.launch(
                server_name=args.host,
                server_port=args.port,
                max_file_size=args.max_upload * MEGABYTE,
                show_error=True,
                share=False,
                footer_links=[],
                theme=gradio.themes.Default(font="sans-serif", font_mono="monospace"),  # none from the network
            )
        except OSError as error:
            raise InputError(f"cannot serve {args.host}:{args.port}: {error}") from error


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks for; returns the exit status."""
    args = parse_args(argv)
    try:
        serve(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
