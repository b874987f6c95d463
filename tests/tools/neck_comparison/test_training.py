"""Trainings of a comparison: equal but for the neck, read off on the way, on features that are those of the network."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from sparsercnn.data import register_config_datasets
from sparsercnn.data.shapes import annotation_file, prepare_shapes
from tools.neck_comparison.arms import CONTROL, DEFAULT, REFERENCE, arm_config, fits
from tools.neck_comparison.average import EXPONENT, PowerAverage
from tools.neck_comparison.costs import Cost, budgets
from tools.neck_comparison.experiment import annotated_levels
from tools.neck_comparison.laboratory import fill_store, make_store
from tools.neck_comparison.pictures import Pictures, draw_order, mirror
from tools.neck_comparison.results import Score, compare
from tools.neck_comparison.training import Detector, Progress

COMPARISONS = sorted((Path(__file__).parents[3] / "configs" / "compare").glob("*.yaml"))
CONFIG = COMPARISONS[-1]
BCCD = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "bccd"
ARMS = [arm for arm in (REFERENCE, CONTROL, *DEFAULT) if fits(arm, arm_config(arm, CONFIG))]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Options that name a few pictures of `shapes_scales`, with a bottom-up network of random weights."""
    root = tmp_path_factory.mktemp("shapes_scales")
    prepare_shapes(root, {"train": 12}, kind="shapes_scales")
    entry = ["compared_scenes", str(annotation_file(root, "train")), str(root / "train")]
    return (
        *("DATASETS.COCO_JSON", [entry], "DATASETS.TRAIN", ("compared_scenes",)),
        *("DATASETS.TEST", ("compared_scenes", "compared_scenes"), "MODEL.TIMM.PRETRAINED", False),
    )


def test_all_but_rfp_which_feeds_back_into_a_resnet_take_part():
    assert {arm.name for arm in DEFAULT} - {arm.name for arm in ARMS} == {"rfp"}


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_a_gradient_reaches_every_parameter_of_every_neck(arm, scenes):
    cfg = arm_config(arm, CONFIG, scenes)
    register_config_datasets(cfg)
    torch.manual_seed(0)
    progress = Progress(cfg, Detector(cfg, None))
    pictures = Pictures.of(cfg, "compared_scenes")
    for first in range(0, 8, 2):
        if progress.unreached:
            progress.step(pictures, [(first, False), (first + 1, True)])
    assert progress.unreached == []


@pytest.mark.parametrize("config", COMPARISONS, ids=lambda path: path.stem)
def test_three_levels_are_read(config, scenes):
    cfg = arm_config(REFERENCE, config, scenes if config == CONFIG else ())
    if config != CONFIG and not BCCD.is_dir():
        pytest.skip("needs the BCCD photos: set DETECTRON2_DATASETS to the folder that holds bccd/")
    register_config_datasets(cfg)
    counts = np.array(annotated_levels(cfg))
    assert (counts >= 0.05 * counts.sum()).sum() >= 3, counts


def test_remembered_features_are_those_of_the_network(tmp_path, scenes):
    cfg = arm_config(REFERENCE, CONFIG, (*scenes, "INPUT.MIN_SIZE_TEST", 128, "INPUT.MAX_SIZE_TEST", 128))
    register_config_datasets(cfg)
    pictures, requests = Pictures.of(cfg, "compared_scenes"), [(0, False), (1, True)]

    def with_same_weights(build, *arguments):
        torch.manual_seed(0)
        return build(*arguments)

    make_store(cfg.dump(), "compared_scenes", tmp_path)
    with_same_weights(fill_store, cfg.dump(), "compared_scenes", tmp_path, [0, 1])
    losses = []
    for features in (None, tmp_path):
        detector = with_same_weights(Detector, cfg, features)
        with torch.no_grad():
            losses.append(with_same_weights(detector.losses, pictures, requests))
    torch.testing.assert_close(*losses)


def test_the_average_is_that_of_its_formula():
    model = nn.Linear(1, 1, bias=False)
    average = PowerAverage(model)
    values = [3.0, -1.0, 2.0, 5.0]
    for value in values:
        model.weight.data.fill_(value)
        average.update()
    # Weights t**γ, as the recursion w ← (1 − 1/t)**(γ + 1) · w + rest adds them up.
    expected = 0.0
    for t, value in enumerate(values, 1):
        keep = (1 - 1 / t) ** (EXPONENT + 1)
        expected = keep * expected + (1 - keep) * value
    with average.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == values[-1]


def test_every_neck_sees_the_same_pictures():
    order = list(itertools.islice(draw_order(7, seed=3), 700))
    assert order == list(itertools.islice(draw_order(7, seed=3), 700))
    assert order != list(itertools.islice(draw_order(7, seed=4), 700))
    for start in range(0, 700, 7):
        assert sorted(index for index, _ in order[start : start + 7]) == list(range(7))
    assert 280 < sum(mirrored for _, mirrored in order) < 420


def test_mirrored_boxes_stay_on_their_objects():
    image = torch.zeros(3, 8, 10)
    image[:, 2:5, 1:4] = 1
    truth = Instances((8, 10), gt_boxes=Boxes(torch.tensor([[1.0, 2, 4, 5]])), gt_classes=torch.tensor([2]))
    flipped = mirror({"image": image, "instances": truth, "image_id": 1})
    x0, y0, x1, y1 = flipped["instances"].gt_boxes.tensor[0].int().tolist()
    assert (x0, y0, x1, y1) == (6, 2, 9, 5) and flipped["image_id"] == 1
    assert flipped["image"][:, y0:y1, x0:x1].all() and flipped["image"].sum() == image.sum()


def test_budgets_are_equal_in_what_they_name():
    costs = {
        "fpn": Cost(1, 1, 1, trained_gmacs=2.0, step_seconds=0.5, test_seconds=1),
        "slow": Cost(1, 1, 1, trained_gmacs=1.0, step_seconds=1.0, test_seconds=1),
        "endless": Cost(1, 1, 1, trained_gmacs=1e9, step_seconds=1e9, test_seconds=1),
    }
    assert budgets(costs, "fpn", 100) == {
        "iterations": {"fpn": 100, "slow": 100, "endless": 100},
        "time": {"fpn": 100, "slow": 50, "endless": 1},
        "multiply-adds": {"fpn": 100, "slow": 200, "endless": 1},
    }


def test_no_conclusion_where_the_interval_holds_zero():
    random = np.random.default_rng(0)

    def score(mean: float, noise: float) -> Score:
        values = mean + noise * random.standard_normal(5)
        return Score(values, values[:, None] + 0.1 * random.standard_normal((1, 2000)))

    scores = {"iterations": {"fpn": score(30, 0.1), "same": score(30, 0.1), "better": score(35, 0.1)}}
    scores["iterations"]["worse"] = score(25, 0.1)
    found = compare(scores, "fpn", ["same", "better", "worse"])["iterations"]
    assert {name: comparison.verdict for name, comparison in found.items()} == {
        "same": "no conclusion",
        "better": "better",
        "worse": "worse",
    }
    for comparison in found.values():
        assert comparison.p_value >= comparison.difference.p_value


def test_a_training_that_breaks_is_over(scenes):
    cfg = arm_config(REFERENCE, CONFIG, scenes)
    register_config_datasets(cfg)
    progress = Progress(cfg, Detector(cfg, None))
    progress.detector.model.head.head_series[0].class_logits.bias.data.fill_(float("nan"))
    progress.step(Pictures.of(cfg, "compared_scenes"), [(0, False)])
    assert not progress.goes_on and progress.iterations == 0
