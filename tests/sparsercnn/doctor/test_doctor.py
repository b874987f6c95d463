"""Each planted fault is named with the line that mends it, and nothing is found where nothing is wrong."""

import copy
import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from sparsercnn import load_config
from sparsercnn.doctor import examine
from sparsercnn.doctor.config_findings import config_findings
from sparsercnn.doctor.data_findings import data_findings
from sparsercnn.engine.build import build_model
from tests.tiny_run import QUICKSTART, TINY

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = """
MODEL.DEVICE cpu MODEL.NECK.OUT_CHANNELS 16 MODEL.SparseRCNN.HIDDEN_DIM 16 MODEL.SparseRCNN.NUM_HEADS 2
MODEL.SparseRCNN.NUM_PROPOSALS 20 MODEL.SparseRCNN.DIM_FEEDFORWARD 16 MODEL.SparseRCNN.DIM_DYNAMIC 8
SOLVER.MAX_ITER 300 SOLVER.WARMUP_ITERS 20 SOLVER.EMA_DECAY 0.9 DATALOADER.NUM_WORKERS 0
INPUT.MIN_SIZE_TRAIN (64,) INPUT.MAX_SIZE_TRAIN 64 INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 64
""".split()


@pytest.fixture
def patient(copies, tmp_path):
    """A function that gives the config of a small training, with other options and other annotations."""
    names = []

    def make(*options, change=None, val=None, config="quickstart.yaml"):
        source = json.loads((copies["coco"] / "labels.json").read_text())
        for annotation in source["annotations"]:
            annotation |= {"area": annotation["bbox"][2] * annotation["bbox"][3], "iscrowd": 0}
        entries = []
        for split, edit in (("train", change), ("val", val or change)):
            content = copy.deepcopy(source)
            if edit:
                edit(content)
            file = tmp_path / f"{split}.json"
            file.write_text(json.dumps(content))
            names.append(f"{tmp_path.name}_{split}")
            entries.append([names[-1], str(file), str(copies["coco"] / "photos")])
        sets = [
            "DATASETS.COCO_JSON",
            str(entries),
            "DATASETS.TRAIN",
            str((names[0],)),
            "DATASETS.TEST",
            str((names[1],)),
        ]
        output = ["OUTPUT_DIR", str(tmp_path / "output")]
        return load_config(CONFIGS / config, [*SMALL, *sets, *output, *map(str, options)])

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def each_box(edit):
    def change(content):
        for annotation in content["annotations"]:
            annotation["bbox"] = edit(*annotation["bbox"])

    return change


def other_order(content):
    names = [category["name"] for category in content["categories"]]
    for category, name in zip(content["categories"], names[1:] + names[:1], strict=True):
        category["name"] = name


def unlisted_class(content):
    content["annotations"][3]["category_id"] = 7


def one_class_more(content):
    content["categories"].append({"id": 99, "name": "star"})


IMAGENET = "detectron2://ImageNetPretrained"
RGB_STD = "[58.395,57.12,57.375]"
PLANTED = {
    "the learning rate of SGD with AdamW": (["SOLVER.BASE_LR", 0.02], "learning rate", "SOLVER.BASE_LR 0.0005"),
    "the learning rate of eight GPUs": (
        ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.02, "SOLVER.IMS_PER_BATCH", 2],
        "learning rate",
        "SOLVER.BASE_LR 0.0025",
    ),
    "the learning rate of AdamW with SGD": (
        ["SOLVER.OPTIMIZER", "SGD"] + ["SOLVER.BASE_LR", 2.5e-5],
        "learning rate",
        "0.005",
    ),
    "gradients that are not clipped": (
        ["SOLVER.CLIP_GRADIENTS.ENABLED", False],
        "gradients",
        "CLIP_GRADIENTS.ENABLED True",
    ),
    "an average over more than the training": (
        ["SOLVER.EMA_DECAY", 0.9998],
        "average of the weights",
        "EMA_DECAY 0.93",
    ),
    "a warm-up of nearly all iterations": (["SOLVER.WARMUP_ITERS", 290], "warm-up", "SOLVER.WARMUP_ITERS 30"),
    "a learning rate that falls at once": (
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(30,60)"],
        "schedule",
        "SOLVER.STEPS (234, 279)",
    ),
    "fewer iterations than pictures": (
        ["SOLVER.MAX_ITER", 5, "SOLVER.WARMUP_ITERS", 1],
        "schedule",
        "SOLVER.MAX_ITER 48",
    ),
    "a mean of pixels from 0 to 1": (["MODEL.PIXEL_MEAN", "[0.485,0.456,0.406]"], "normalization", "[123.675, 116.28"),
    "BGR pixels with a mean of RGB": (["INPUT.FORMAT", "BGR"], "channel order", "PIXEL_MEAN [103.53, 116.28, 123.675]"),
    "torchvision's weights without their deviation": (
        ["MODEL.WEIGHTS", f"{IMAGENET}/torchvision/R-18.pkl", "MODEL.PIXEL_STD", "[1.0,1.0,1.0]"],
        "normalization",
        "PIXEL_STD [58.395",
    ),
    "Caffe's weights with RGB pixels": (
        ["MODEL.WEIGHTS", f"{IMAGENET}/MSRA/R-50.pkl", "MODEL.PIXEL_STD", "[1.0,1.0,1.0]"],
        "channel order",
        "INPUT.FORMAT BGR",
    ),
    "torchvision's weights with Caffe's strides": (
        ["MODEL.WEIGHTS", f"{IMAGENET}/torchvision/R-18.pkl", "MODEL.RESNETS.STRIDE_IN_1X1", True],
        "ResNet",
        "STRIDE_IN_1X1 False",
    ),
    "scores that start at a half": (["MODEL.SparseRCNN.PRIOR_PROB", 0.5], "loss at start", "PRIOR_PROB 0.01"),
    "other sizes in tests": (
        ["INPUT.MIN_SIZE_TEST", 256, "INPUT.MAX_SIZE_TEST", 256],
        "input size",
        "MIN_SIZE_TEST 64",
    ),
    "a frozen network of random weights": (["MODEL.BACKBONE.FREEZE_AT", 3], "frozen parts", "FREEZE_AT 0"),
    "frozen norms of random weights": (["MODEL.RESNETS.NORM", "FrozenBN"], "frozen parts", "MODEL.RESNETS.NORM BN"),
    "fewer proposals than objects": (["MODEL.SparseRCNN.NUM_PROPOSALS", 2], "number of proposals", "NUM_PROPOSALS 10"),
    "another number of classes": (["MODEL.SparseRCNN.NUM_CLASSES", 80], "number of classes", "NUM_CLASSES 3"),
    "objects of no size": (
        ["INPUT.MIN_SIZE_TRAIN", "(16,)"] + ["INPUT.MIN_SIZE_TEST", 16],
        "input size",
        "MIN_SIZE_TRAIN",
    ),
    "a key with a value that is none": (["SOLVER.OPTIMIZER", "ADAM"], "config", "the key that the line names"),
}
PLANTED_DATA = {
    "boxes by corners": (each_box(lambda x, y, w, h: [x, y, x + w, y + h]), "box format", "x1 - x0"),
    "boxes by centers": (each_box(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]), "box format", "cx - w / 2"),
    "boxes as parts of the picture": (each_box(lambda *box: [side / 64 for side in box]), "box format", "multiply x"),
    "a class that is not listed": (unlisted_class, "annotations", "the entry that the line names"),
    "a class too many": (one_class_more, "number of classes", "NUM_CLASSES 4"),
}


def abouts(cfg, seconds=0):
    return [(finding.about, finding.change) for finding in examine(cfg, seconds).findings]


def assert_named(cfg, about, change):
    # The model is built only for what nothing before it finds.
    before = [(finding.about, finding.change) for finding in [*config_findings(cfg), *data_findings(cfg, [])]]
    found = before or abouts(cfg)
    assert any(name == about and change in line for name, line in found), found


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_in_configs(patient, fault):
    options, about, change = PLANTED[fault]
    assert_named(patient(*options), about, change)


@pytest.mark.parametrize("fault", PLANTED_DATA)
def test_planted_faults_in_data(patient, fault):
    edit, about, change = PLANTED_DATA[fault]
    assert_named(patient(change=edit), about, change)


def test_classes_in_another_order(patient):
    assert_named(patient(change=lambda content: None, val=other_order), "class ids", "the categories of")


def test_a_data_set_that_is_not_registered(patient):
    cfg = patient()
    cfg.DATASETS.TRAIN = ("shapes_trian",)
    (finding,) = data_findings(cfg, [])
    assert "shapes_trian is not registered; did you mean shapes_train?" in finding.problem


def test_a_shipped_data_set_that_is_not_here_is_no_finding(patient):
    cfg = patient()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("crowdhuman_train", "coco_2017_train")
    absent = []
    assert data_findings(cfg, absent) == [] and absent == ["crowdhuman_train", "coco_2017_train"]


def test_testing_on_what_is_trained_on(patient):
    cfg = patient()
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN
    assert_named(cfg, "data sets", "DATASETS.TEST")


@pytest.fixture
def registered(tmp_path):
    """A function that makes of a patient's config one whose training set is what Python code registers."""
    name = f"{tmp_path.name}_code"

    def make(cfg, change):
        records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
        for annotation in (a for record in records for a in record["annotations"]):
            change(annotation)
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(thing_classes=["circle", "rectangle", "triangle"])
        cfg.DATASETS.TRAIN = (name,)
        return cfg

    yield make
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_class_ids_from_one(patient, registered):
    cfg = registered(patient(), lambda annotation: annotation.update(category_id=annotation["category_id"] + 1))
    assert_named(cfg, "class ids", "subtract 1")


def test_boxes_with_the_wrong_mode(patient, registered):
    cfg = registered(patient(), lambda annotation: annotation.update(bbox_mode=BoxMode.XYXY_ABS))
    assert_named(cfg, "box format", "XYWH_ABS")


def test_weights_of_another_model(patient, tmp_path):
    other = patient("MODEL.SparseRCNN.DIM_FEEDFORWARD", 32)
    torch.save({"model": build_model(other).state_dict()}, tmp_path / "other.pth")
    cfg = other.clone()
    cfg.MODEL.SparseRCNN.DIM_FEEDFORWARD = 16
    cfg.MODEL.WEIGHTS = str(tmp_path / "other.pth")
    assert_named(cfg, "weights", "MODEL.WEIGHTS")


def test_weights_whose_name_states_another_checksum(patient, tmp_path):
    cfg = patient()
    path = tmp_path / "network-0676ba61.pth"
    torch.save({"model": build_model(cfg).state_dict()}, path)
    cfg.MODEL.WEIGHTS = str(path)
    (finding,) = [finding for finding in examine(cfg, 0).findings if finding.about == "weights"]
    assert "its name says 0676ba61" in finding.problem


def test_the_table_counts_what_was_loaded(patient, tmp_path):
    cfg = patient()
    torch.manual_seed(1)
    state = build_model(cfg).state_dict()
    torch.save({"model": state}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    found = examine(cfg, 0)
    assert found.findings == []
    rows = {line.split()[0]: list(map(int, line.split()[1:])) for line in found.table.splitlines()[1:]}
    network = sum("bottom_up" in name and "num_batches" not in name for name in state)
    assert rows["backbone.bottom_up"] == [network, network, 0, 0] and rows["head"][2] == 0


def test_of_a_backbone_alone_the_table_counts_the_rest_as_not_loaded(patient, tmp_path):
    cfg = patient()
    state = {name: value for name, value in build_model(cfg).state_dict().items() if "bottom_up" in name}
    torch.save({"model": state}, tmp_path / "network.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "network.pth")
    found = examine(cfg, 0)
    assert found.findings == []
    rows = {line.split()[0]: list(map(int, line.split()[1:])) for line in found.table.splitlines()[1:]}
    assert rows["backbone.bottom_up"][2] == 0 and rows["head"][1] == 0


DENSE = ["MODEL.SparseRCNN.PROPOSALS", "dense", "INPUT.MAX_SIZE_TEST", "64"]


@pytest.fixture
def by_heart(tiny, loggers):
    """A function that lets a small model learn the four pictures of `tiny`, which show one rectangle each."""

    def learn(rate, seconds=600):
        options = [
            "SOLVER.IMS_PER_BATCH",
            4,
            "SOLVER.MAX_ITER",
            300,
            "SOLVER.WARMUP_ITERS",
            30,
            "SOLVER.EMA_DECAY",
            0.0,
            "SOLVER.BASE_LR",
            rate,
        ]
        return examine(load_config(QUICKSTART, [*TINY, *DENSE, *map(str, options)]), seconds)

    return learn


def test_time_that_is_over_too_soon_says_nothing(by_heart):
    found = by_heart(0.002, seconds=1e-6)
    assert [finding.about for finding in found.findings] == ["data sets"]  # tiny is trained and tested on
    assert "after 1 iterations" in found.remarks[-1] and "when the time was over" in found.remarks[-1]


@pytest.mark.slow
def test_a_healthy_training_learns_four_pictures_by_heart(by_heart):
    found = by_heart(0.002)
    assert [finding.about for finding in found.findings] == ["data sets"]  # tiny is trained and tested on
    assert any(remark.startswith("four pictures by heart: ") for remark in found.remarks), found.remarks


@pytest.mark.slow
def test_a_training_that_does_not_move_is_named(by_heart):
    found = {finding.about: finding for finding in by_heart(0.0001).findings}
    assert "where 90 are expected" in found["four pictures by heart"].problem
