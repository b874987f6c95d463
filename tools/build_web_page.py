#!/usr/bin/env python3
"""A folder with a page that runs an exported detector in the browser, without a server.

    python tools/build_web_page.py model.onnx --output page/

Then open page/index.html. onnxruntime-web is fetched from the npm registry (the one of your npm config), once for each
--output, and compared with the hash that the registry gives.
"""

import argparse
import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from sparsercnn.errors import InputError
from sparsercnn.files import write_whole

PAGE = Path(__file__).parents[1] / "web"
PACKAGE, VERSION = "onnxruntime-web", "1.23.2"
# What runtime.js holds, by the name that detector.js has for it.
FILES = {
    "module": "ort.wasm.min.mjs",
    "loader": "ort-wasm-simd-threaded.mjs",
    "wasm": "ort-wasm-simd-threaded.wasm",
}
LICENSE = "LICENSE"
TIMEOUT = 60  # seconds in which the registry must answer
# Letters of a text in a script: browsers limit the length of one.
PART = 32 * 2**20


def build(model: Path, output: Path) -> None:
    """Write the page for a model into a folder.

    Raises:
        InputError: the model is no file that `tools/export.py` wrote, or onnxruntime-web cannot be fetched.
    """
    metadata = read_metadata(model)
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "runtime.js").is_file():
        files = fetch_runtime()
        content = {name: parts(files[file]) for name, file in FILES.items()}
        header = f"// {PACKAGE} {VERSION}, see {PACKAGE}.LICENSE\n"
        write_script(output / "runtime.js", "RUNTIME", content, header)
        write_whole(output / f"{PACKAGE}.LICENSE", lambda file: file.write(files[LICENSE]))
    write_script(output / "model.js", "MODEL", {"metadata": metadata, "parts": parts(model.read_bytes())})
    for file in sorted(PAGE.iterdir()):
        shutil.copy(file, output)


def read_metadata(model: Path) -> dict:
    """What an exported file says about itself.

    Raises:
        InputError: see `build`.
    """
    try:
        import onnx
    except ImportError as error:
        raise InputError("reading the model needs onnx: pip install 'sparsercnn[export]'") from error
    try:
        texts = {entry.key: entry.value for entry in onnx.load(str(model)).metadata_props}
    except Exception as error:  # protobuf raises errors of classes of its own
        raise InputError(f"{model} cannot be read as an ONNX file: {error}") from error
    if "class_names" not in texts or "divisor" not in texts:
        raise InputError(f"{model} was not written by tools/export.py: it does not say how to use it")
    return {key: json.loads(value) for key, value in texts.items() if key != "config"}


def fetch_runtime() -> dict[str, bytes]:
    """The needed files of onnxruntime-web and its license, by name.

    Raises:
        InputError: the registry does not give them, or gives something else.
    """
    about = json.loads(_get(f"{registry()}/{PACKAGE}/{VERSION}"))
    archive = _get(about["dist"]["tarball"])
    algorithm, _, expected = about["dist"]["integrity"].partition("-")
    if base64.b64encode(hashlib.new(algorithm, archive).digest()).decode() != expected:
        raise InputError(f"{PACKAGE} {VERSION} from {registry()} is damaged: its {algorithm} is not what it should be")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {file: _content(tar, f"package/dist/{file}") for file in FILES.values()}
        files[LICENSE] = f"{PACKAGE} {VERSION}: {about['license']}, https://onnxruntime.ai\n".encode()
    return files


def registry() -> str:
    """Address of the npm registry: that of npm's config where npm is installed."""
    npm = shutil.which("npm")
    if not npm:
        return "https://registry.npmjs.org"
    done = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True)
    return done.stdout.strip().rstrip("/") or "https://registry.npmjs.org"


def _get(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            return answer.read()
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(f"cannot fetch {address}: {error}") from error


def _content(tar: tarfile.TarFile, name: str) -> bytes:
    try:
        file = tar.extractfile(name)
    except KeyError as error:
        raise InputError(f"{PACKAGE} {VERSION} has no {name}") from error
    assert file is not None, f"{name} is no file"
    return file.read()


def parts(content: bytes) -> list[str]:
    """Base64 in texts that a browser takes."""
    return [base64.b64encode(content[i : i + PART]).decode() for i in range(0, len(content), PART)]


def write_script(path: Path, name: str, value: object, header: str = "") -> None:
    """Write a script that defines one constant."""
    text = f"{header}const {name} = {json.dumps(value)};\n"
    write_whole(path, lambda file: file.write(text.encode()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL", help="an .onnx file that tools/export.py wrote")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="for the page")
    args = parser.parse_args(argv)
    try:
        build(args.model, args.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.output / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
