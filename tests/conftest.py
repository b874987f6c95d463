"""A tiny data set and a training on it, for tests of the whole program."""

import json
import logging
import multiprocessing

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from tests.labeled_copies import WRITERS, make_pictures
from tests.processes import forkserver
from tests.tiny_run import run


@pytest.fixture(scope="session")
def copies(tmp_path_factory):
    """{format: folder} of one data set of 16 pictures, of which the last shows nothing."""
    root = tmp_path_factory.mktemp("copies")
    labeled = make_pictures(root / "pictures", 16)
    labeled[-1].objects.clear()
    for kind, write in WRITERS.items():
        (root / kind).mkdir()
        write(root / "pictures", labeled, root / kind)
    return {kind: root / kind for kind in WRITERS}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A registered data set of four pictures with one rectangle each."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(1, 5):
        pixels = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        x, y, w, h = 4 * i, 40 - 4 * i, 12 + 4 * i, 20
        pixels[y : y + h, x : x + w] = 80 * (i % 3) + 60
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
        box = {"id": i, "image_id": i, "category_id": i % 3 + 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
        annotations.append(box)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(("circle", "square", "triangle"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    register_coco_instances("tiny", {}, str(folder / "annotations.json"), str(folder))
    yield folder
    DatasetCatalog.remove("tiny")
    MetadataCatalog.remove("tiny")


@pytest.fixture(autouse=True)
def loggers():
    """`default_setup` takes the logs over; give them back to pytest."""
    yield
    for name in ("detectron2", "fvcore", "sparsercnn"):
        logging.getLogger(name).propagate = True
        logging.getLogger(name).handlers.clear()


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    assert run("SOLVER.MAX_ITER", 3, "SEED", 3, "OUTPUT_DIR", output) == 0
    return output


@pytest.fixture
def quick_processes(monkeypatch):
    """Processes that would be spawned are forked from one that has imported everything."""
    get_context = multiprocessing.get_context
    quick = forkserver()
    monkeypatch.setattr(multiprocessing, "get_context", lambda way=None: quick if way == "spawn" else get_context(way))
