"""An exported detector finds what PyTorch finds, at any size and number of pictures, and says itself how to use it."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sparsercnn_runtime import OnnxDetector

from benchmarks.models import act_trained
from sparsercnn import Detector, load_config
from sparsercnn.engine import SparseRCNNCheckpointer, build_model
from sparsercnn.engine.checkpoints.metadata import run_metadata
from sparsercnn.errors import InputError
from sparsercnn.export.graph import DetectionGraph
from sparsercnn.export.onnx import OUTPUTS, compare, describe, example_batches, export_onnx, program
from sparsercnn.export.openvino import export_openvino
from tests.sparsercnn.models import image, small_config, small_model

ROOT = Path(__file__).parents[3]
SIZES = ((60, 90), (64, 50))
# Height and width of pictures as COCO is evaluated, a batch in each row.
PUBLISHED_SIZES = (((800, 1216),), ((800, 1067), (750, 1120)), ((427, 640),))
ABOUT = {
    "class_names": ["a", "b", "c"],
    "threshold": 0.0,
    "min_size": 64,
    "max_size": 96,
    "license": "MIT",
    "config": "",
}


def graph_inputs(graph: DetectionGraph, images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = torch.tensor([x.shape[1:] for x in images])
    height, width = (-(-int(side) // graph.divisor) * graph.divisor for side in sizes.amax(0))
    batch = torch.full((len(images), height, width, 3), 77, dtype=torch.uint8)  # what padding holds does not matter
    for row, x in zip(batch, images, strict=True):
        row[: x.shape[1], : x.shape[2]] = x.permute(1, 2, 0)
    return batch, sizes


@pytest.mark.parametrize("use_focal", [True, False])
@pytest.mark.parametrize("channel_order", ["RGB", "BGR"])
def test_the_graph_finds_what_the_detector_finds(use_focal, channel_order):
    model = small_model(use_focal)
    graph = DetectionGraph(model, channel_order)
    images = [image(size, seed) for seed, size in enumerate(SIZES)]
    inputs = [{"image": x if channel_order == "RGB" else x.flip(0)} for x in images]
    with torch.no_grad():
        expected = model(inputs)
        boxes, scores, classes = graph(*graph_inputs(graph, images))
    for i, result in enumerate(expected):
        solid = (boxes[i, :, 2:] > boxes[i, :, :2]).all(-1)
        found = result["instances"]
        torch.testing.assert_close(scores[i][solid], found.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes[i][solid], found.pred_boxes.tensor, rtol=0, atol=1e-2)
        assert classes[i][solid].tolist() == found.pred_classes.tolist()


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    graph = DetectionGraph(small_model(), "RGB")
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(graph, path, describe(graph, ABOUT))
    return path, graph


def test_only_standard_operators_and_free_sizes(onnx_file):
    import onnx

    model = onnx.load(onnx_file[0])
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert {f.domain for f in model.functions} == set()
    images = next(i for i in model.graph.input if i.name == "images")
    assert all(d.dim_param for d in images.type.tensor_type.shape.dim[:3])
    assert [path.name for path in onnx_file[0].parent.iterdir()] == ["model.onnx"]


def test_the_runner_writes_the_same_coco_results_without_torch(onnx_file, tmp_path):
    path, graph = onnx_file
    cfg = small_config()
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = "RGB", ABOUT["min_size"], ABOUT["max_size"]
    SparseRCNNCheckpointer(graph.model, str(tmp_path), metadata=run_metadata(cfg)).save("model")
    pictures = []
    for i, size in enumerate(((90, 130), (64, 64), (40, 150))):
        pictures.append(tmp_path / f"{i}.png")
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)).save(pictures[-1])
    program = f"""
import json, sys
sys.modules["torch"] = None  # importing it fails
sys.path.insert(0, {str(ROOT / "runtime")!r})
from sparsercnn_runtime import OnnxDetector, to_coco
found = OnnxDetector({str(path)!r}).predict({list(map(str, pictures))!r}, threshold=0.0)
print(json.dumps([result for i, one in enumerate(found) for result in to_coco(one, image_id=i)]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    detections = Detector.from_checkpoint(tmp_path / "model.pth", "cpu").predict(pictures, threshold=0.0)
    expected = [result for i, one in enumerate(detections) for result in one.to_coco(image_id=i)]
    assert len(found) == len(expected) > 20
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys() and ours["image_id"] == theirs["image_id"]
        assert ours["category_id"] == theirs["category_id"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-3)
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=0.1)


def test_a_file_says_what_it_is(onnx_file):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file[0]))
    stored = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert stored.items() >= ABOUT.items()
    assert len(stored["weights_sha256"]) == 64 and stored["divisor"] == 32


def test_a_wrong_export_is_refused():
    boxes, scores = np.zeros((1, 3, 4), dtype=np.float32), np.array([[0.9, 0.8, 0.7]], dtype=np.float32)
    classes = np.zeros((1, 3), dtype=np.int64)
    expected = [boxes, scores, classes]
    compare(expected, [boxes + 0.05, scores, classes], "here")
    with pytest.raises(InputError, match=r"scores in here differ by 1\.0e-02"):
        compare(expected, [boxes, scores + 0.01, classes], "here")
    with pytest.raises(InputError, match="boxes in here differ"):
        compare(expected, [boxes + 1, scores, classes], "here")
    with pytest.raises(InputError, match="boxes in here differ"):
        compare(expected, [boxes, scores, classes + 1], "here")


def test_what_nms_may_choose_differently():
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]]], dtype=np.float32)
    scores, classes = np.array([[0.9, 0.9, 0.5]], dtype=np.float32), np.zeros((1, 3), dtype=np.int64)
    first, second = ([x[:, rows] for x in (boxes, scores, classes)] for rows in ([0, 2], [1, 2]))
    compare(first, second, "here", nms_threshold=0.5)
    with pytest.raises(InputError, match="boxes in here differ"):
        compare(first, second, "here")
    with pytest.raises(InputError, match="detections in here are not those of PyTorch"):
        compare(first, second, "here", nms_threshold=0.95)
    with pytest.raises(InputError, match="detections in here"):
        compare(first, [second[0], second[1] - 0.2, second[2]], "here", nms_threshold=0.5)


def test_other_models_are_refused_in_one_line():
    with pytest.raises(InputError, match="Linear cannot be exported"):
        DetectionGraph(torch.nn.Linear(1, 1), "RGB")


def dense_detector(distinct_overlap: float = 1.0) -> torch.nn.Module:
    """The small model with proposals that depend on the picture."""
    cfg = small_config()
    cfg.MODEL.SparseRCNN.DISTINCT_OVERLAP = distinct_overlap
    cfg.MODEL.SparseRCNN.PROPOSALS = "dense"
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.dense_queries.class_logits.weight, std=0.5)  # distinct scores, so that an order is one
    return model


def efficientdet(*options: object) -> torch.nn.Module:
    options = ("MODEL.DEVICE", "cpu", "MODEL.NECK.BIFPN.NUM_LAYERS", 1, "MODEL.EFFICIENTDET.DEPTH", 1, *options)
    torch.manual_seed(0)
    model = build_model(load_config(ROOT / "configs" / "efficientdet" / "quickstart.yaml", options)).eval()
    for last, std in ((model.head.class_logits, 2.0), (model.head.box_deltas, 0.1)):
        torch.nn.init.normal_(last.pointwise.weight, std=std)
    return model


DETECTORS = {"dense": dense_detector, "distinct": partial(dense_detector, 0.5), "efficientdet": efficientdet}


@pytest.mark.parametrize("kind", DETECTORS)
def test_the_graph_of_other_detectors_finds_what_they_find(kind):
    model = DETECTORS[kind]()
    graph = DetectionGraph(model, "RGB")
    ((images, sizes),) = example_batches(graph.divisor, (((96, 60), (90, 128)),))
    pictures = [x[:height, :width] for x, (height, width) in zip(images, sizes.tolist(), strict=True)]
    with torch.no_grad():
        boxes, scores, classes = graph(images, sizes)
        expected = model([{"image": x.permute(2, 0, 1)} for x in pictures])
    for i, result in enumerate(expected):
        # What is found twice has score 0, and its order is left open.
        found = result["instances"][result["instances"].scores > 0]
        solid = (boxes[i, :, 2:] > boxes[i, :, :2]).all(-1) & (scores[i] > 0)
        assert len(found) and classes[i][solid].tolist() == found.pred_classes.tolist()
        torch.testing.assert_close(scores[i][solid], found.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes[i][solid], found.pred_boxes.tensor, rtol=0, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DETECTORS)
def test_other_detectors_in_openvino(kind, tmp_path):
    pytest.importorskip("openvino")
    graph = DetectionGraph(DETECTORS[kind](), "RGB")
    # Compares with PyTorch at several sizes and numbers of pictures, in onnxruntime and in OpenVINO, or else raises.
    export_openvino(graph, tmp_path / "model.xml", describe(graph, ABOUT))
    assert {path.name for path in tmp_path.iterdir()} == {"model.xml", "model.bin"}
    detector = OnnxDetector(tmp_path / "model.xml")
    assert detector.metadata.items() >= ABOUT.items()
    assert detector.predict(np.full((80, 100, 3), 100, dtype=np.uint8), threshold=0.0)


def test_soft_nms_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"soft NMS cannot be exported: set MODEL\.EFFICIENTDET\.NMS to hard"):
        program(DetectionGraph(efficientdet("MODEL.EFFICIENTDET.NMS", "soft"), "RGB"))


@pytest.fixture(scope="module")
def r50_file(tmp_path_factory):
    """R50-FPN with 300 proposals, with weights that spread its boxes and scores, and move boxes as trained ones do."""
    cfg = load_config(ROOT / "configs" / "sparsercnn.res50.300pro.3x.yaml", ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    act_trained(model, torch.Generator().manual_seed(0))
    for stage in model.head.head_series:
        torch.nn.init.normal_(stage.class_logits.weight, std=0.1)
    graph = DetectionGraph(model, "RGB")
    path = tmp_path_factory.mktemp("r50") / "model.onnx"
    export_onnx(graph, path, describe(graph, ABOUT))
    return path, graph


@pytest.mark.slow
def test_the_published_detector_at_its_sizes(r50_file):
    onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    path, graph = r50_file
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for images, sizes in example_batches(graph.divisor, PUBLISHED_SIZES):
        with torch.no_grad():
            expected = [t.numpy() for t in graph(images, sizes)]
        assert expected[1].std() > 0.02 and len(set(expected[2][0])) > 5  # it does tell things apart
        inputs = {"images": images.numpy(), "sizes": sizes.numpy()}
        compare(expected, session.run(list(OUTPUTS), inputs), "onnxruntime")
        results = compiled(inputs)
        compare(expected, [results[name] for name in OUTPUTS], "OpenVINO")
