"""What a config decides by the data and by the machine."""

from pathlib import Path

import pytest

from sparsercnn import load_config
from sparsercnn.data.formats import LabeledBox, LabeledImage
from sparsercnn.engine.recipe import Machine, decide

LAPTOP = Machine(has_gpu=False, cores=4, has_pretrained=True)
SERVER = Machine(has_gpu=True, cores=32, has_pretrained=True)


def images(count=100, size=(640, 480), side=48, objects=5):
    box = LabeledBox("cat", (0, 0, side, side))
    return [LabeledImage(Path(f"{i}.png"), size, [box] * objects) for i in range(count)]


@pytest.fixture(scope="module")
def base():
    return load_config("configs/Base-Lite0.yaml", ["MODEL.DEVICE", "cpu"])


def decided(base, train, machine=LAPTOP, classes=("cat",), **options):
    return {decision.key: decision.value for decision in decide(base, classes, train, machine, **options)}


def test_small_objects_get_large_pictures_as_far_as_the_machine_goes(base):
    def side(objects, machine=LAPTOP, **picture):
        return decided(base, images(side=objects, **picture), machine)["INPUT.MIN_SIZE_TEST"]

    assert side(200) == 256
    assert side(48) == 320  # the object is 32 pixels large
    assert side(10) == 480 and side(10, SERVER) == 800
    assert side(10, SERVER, size=(200, 100)) == 192  # enlarged twice, to a multiple of 32


def test_sizes_keep_the_shape_of_pictures(base):
    found = decided(base, images(size=(960, 480)))
    assert found["INPUT.MAX_SIZE_TEST"] == 2 * found["INPUT.MIN_SIZE_TEST"]
    smallest, middle, largest = found["INPUT.MIN_SIZE_TRAIN"]
    assert smallest < middle == found["INPUT.MIN_SIZE_TEST"] < largest <= found["INPUT.MAX_SIZE_TRAIN"] / 2


def test_proposals_follow_the_fullest_picture(base):
    assert "TEST.DETECTIONS_PER_IMAGE" not in decided(base, images(objects=40))
    assert decided(base, images(objects=40))["MODEL.SparseRCNN.NUM_PROPOSALS"] == 60
    crowded = decided(base, images(objects=300))
    assert crowded["MODEL.SparseRCNN.NUM_PROPOSALS"] == crowded["TEST.DETECTIONS_PER_IMAGE"] == 450


def test_schedule_and_rate_follow_the_machine(base):
    laptop, server = (decided(base, images(2000), machine) for machine in (LAPTOP, SERVER))
    assert laptop["SOLVER.MAX_ITER"] == 1500 and server["SOLVER.MAX_ITER"] == 5000
    assert server["SOLVER.IMS_PER_BATCH"] == 16
    assert server["SOLVER.BASE_LR"] == pytest.approx(base.SOLVER.BASE_LR * 16 / base.SOLVER.IMS_PER_BATCH)


def test_without_the_package_nothing_is_frozen(base):
    found = decided(base, images(), Machine(has_gpu=False, cores=2, has_pretrained=False))
    assert not found["MODEL.TIMM.PRETRAINED"] and found["MODEL.TIMM.NORM"] == "BN"
    assert found["MODEL.BACKBONE.FREEZE_AT"] == 0


def test_classes_with_sides_are_not_mirrored(base):
    assert decided(base, images(), classes=("turn_left", "stop"))["INPUT.RANDOM_FLIP"] == "none"
    assert decided(base, images(), classes=("7", "8"))["INPUT.RANDOM_FLIP"] == "none"
    assert "INPUT.RANDOM_FLIP" not in decided(base, images(), classes=("leftover",))


def test_other_detectors_get_what_they_have():
    base = load_config("configs/fasterrcnn/quickstart.yaml", ["MODEL.DEVICE", "cpu"])
    found = decided(base, images(), classes=("cat", "dog", "bird", "cow"))
    assert found["MODEL.ROI_HEADS.NUM_CLASSES"] == 4
    assert not any(key.startswith("MODEL.SparseRCNN") for key in found)
