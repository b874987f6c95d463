"""The comparison of detectors: pairs, columns, the recall of what a training left, and one command from end to end."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from sparsercnn import load_config
from sparsercnn.data import register_config_datasets
from sparsercnn.data.shapes import annotation_file, prepare_shapes
from sparsercnn.engine import build_model
from tools import compare_detectors

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTARTS = [str(CONFIGS / folder / "quickstart.yaml") for folder in (".", "fasterrcnn", "efficientdet")]
ROW = {
    "detector": "SparseRCNN",
    "neck": "FPN",
    "iterations": 100,
    "AP": [10.0, 14.0],
    "AP50": [20.0, 20.0],
    "AR": [30.0, 32.0],
    "parameters": 1.234,
    "gmacs": 0.5,
    "ms": 12.34,
    "training_mib": 900.4,
}


@pytest.fixture
def scenes(tmp_path):
    """Options that name a data set of four scenes of shapes."""
    root = tmp_path / "shapes"
    prepare_shapes(root, {"train": 4})
    yield [
        *("DATASETS.COCO_JSON", str([["scenes", str(annotation_file(root, "train")), str(root / "train")]])),
        *("DATASETS.TRAIN", "('scenes',)", "DATASETS.TEST", "('scenes',)"),
    ]
    DatasetCatalog.remove("scenes")
    MetadataCatalog.remove("scenes")


def test_every_config_with_every_neck(scenes):
    args = compare_detectors.parse_arguments([*QUICKSTARTS, *scenes, "MODEL.NECK.NORM", "BN", "--minutes", "1"])
    configs = compare_detectors.detectors(args)
    necks = {name: type(build_model(cfg).backbone.neck).__name__ for name, cfg in configs.items()}
    assert all(len({necks[name] for name in necks if name[0] == detector}) == 3 for detector, _ in necks), necks
    names = ("SparseRCNN", "GeneralizedRCNN", "EfficientDet")
    assert list(configs) == [(detector, neck) for detector in names for neck in ("FPN", "BiFPN", "SA")]
    assert all(cfg.MODEL.NECK.NAME == neck and cfg.MODEL.NECK.NORM == "BN" for (_, neck), cfg in configs.items())


def test_the_table_has_means_and_intervals():
    row = compare_detectors.markdown([ROW]).splitlines()[-1]
    # 12.706 is the 97.5 % quantile with one degree of freedom.
    assert row == (
        f"| SparseRCNN | FPN | 100 | 12.0 ± {12.706 * 8**0.5 / 2**0.5:.1f} | 20.0 ± 0.0 | 31.0 ± 12.7 | 1.23 | 0.50 | "
        "12.3 | 900 |"
    )


def test_the_plot_has_a_point_for_each_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_detectors.plt, "close", lambda figure: None)
    compare_detectors.plot([ROW, {**ROW, "neck": "SA", "ms": 15.0}], tmp_path / "plot.png")
    (axes,) = compare_detectors.plt.gcf().axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["SparseRCNN, FPN", "SparseRCNN, SA"]
    assert (tmp_path / "plot.png").stat().st_size > 0


# Twenty objects, one of them large: more than the ten that AR@10 looks at, and not all of one size.
@pytest.mark.parametrize("found, recall", [(range(20), 100.0), (range(15), 75.0), ([], 0.0)])
def test_average_recall_is_that_of_coco(request, tmp_path, found, recall):
    boxes = [[0, 0, 110, 110], *([40 * i, 120, 30, 30] for i in range(1, 20))]
    truth = {
        "images": [{"id": 1, "width": 900, "height": 200, "file_name": "1.png"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "square"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    options = ["DATASETS.COCO_JSON", [["squares", str(tmp_path / "truth.json"), str(tmp_path)]]]
    cfg = load_config(QUICKSTARTS[0], [*options, "DATASETS.TEST", ("squares",), "OUTPUT_DIR", str(tmp_path)])
    register_config_datasets(cfg)
    request.addfinalizer(lambda: DatasetCatalog.remove("squares") or MetadataCatalog.remove("squares"))
    folder = tmp_path / "inference" / "squares"
    folder.mkdir(parents=True)
    results = [{"image_id": 1, "category_id": 1, "bbox": boxes[i], "score": 0.9} for i in found]
    (folder / "coco_instances_results.json").write_text(json.dumps(results))
    assert compare_detectors.average_recall(cfg) == pytest.approx(recall)


@pytest.mark.parametrize(
    "words, message",
    [
        ([QUICKSTARTS[0], QUICKSTARTS[0]], "is a second config of SparseRCNN"),
        ([QUICKSTARTS[0], str(CONFIGS / "fasterrcnn" / "bccd.yaml")], "the configs differ in DATASETS.TEST"),
        ([QUICKSTARTS[0], "MODEL.NECK.NAMES", "FPN"], "MODEL.NECK.NAMES"),
        ([QUICKSTARTS[0], "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"], "must be build_neck_backbone"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, monkeypatch, words, message):
    for check in ("check_config", "check_test_set"):  # which need data
        monkeypatch.setattr(compare_detectors, check, lambda cfg: None)
    assert compare_detectors.main([*words, "--minutes", "1", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.slow  # six processes, one after the other
def test_one_command_from_training_to_the_plot(scenes, tmp_path, capsys):
    options = [*scenes, "MODEL.DEVICE", "cpu", "MODEL.NECK.NORM", "BN", "SOLVER.IMS_PER_BATCH", "2"]
    command = [*QUICKSTARTS, *options, "--minutes", "0.001", "--seeds", "1", "--necks", "FPN", "BiFPN"]
    assert compare_detectors.main([*command, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(f"| {name} |") == 3 for name in ("FPN", "BiFPN"))
    rows = json.loads((tmp_path / "out" / "detectors.json").read_text())["rows"]
    assert [row["iterations"] for row in rows] == [2] * 6
    assert all(0 <= row["AR"][0] <= 100 and row["ms"] > 0 and row["training_mib"] > 100 for row in rows)
    assert all(row["gmacs"] > 0.1 for row in rows)
    assert (tmp_path / "out" / "detectors.png").stat().st_size > 0
