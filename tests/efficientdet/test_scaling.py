"""What the compound coefficient stands for, who has the last word about it, and the sizes of the models it makes."""

from pathlib import Path

import pytest
import timm
import torch
import yaml
from detectron2.config import CfgNode
from torch.utils.flop_counter import FlopCounterMode

from efficientdet import EfficientDet, EfficientDetConfigError, scaled_keys
from necks import compound_scaling
from sparsercnn import load_config
from sparsercnn.engine import build_model
from sparsercnn.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs" / "efficientdet"
PARAMETERS = (3.9, 6.6, 8.1, 12.0, 20.7, 33.7, 51.9, 51.9)  # millions, as published
MULTIPLY_ADDS = (2.5, 6.1, 11, 25, 55)  # billions, as published


def config(phi: int, *options: object) -> CfgNode:
    return load_config(CONFIGS / f"d{phi}.yaml", ["MODEL.TIMM.PRETRAINED", False, "MODEL.DEVICE", "meta", *options])


def build(phi: int) -> EfficientDet:
    """Without memory or time for weights."""
    with torch.device("meta"):
        return build_model(config(phi)).eval()


def multiply_adds(model: EfficientDet, size: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = model.backbone(torch.zeros(1, 3, size, size, device="meta"))
        model.head([features[name] for name in model.in_features])
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("phi", range(8))
def test_sizes_of_the_published_models(phi):
    model = build(phi)
    parameters = sum(p.numel() for p in model.parameters())
    # Published are models of 90 classes, with biases before norms.
    assert parameters / 1e6 == pytest.approx(PARAMETERS[phi], rel=0.01)
    assert list(model.backbone.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    if phi < len(MULTIPLY_ADDS):
        size = config(phi).INPUT.MAX_SIZE_TEST
        assert multiply_adds(model, size) / 1e9 == pytest.approx(MULTIPLY_ADDS[phi], rel=0.03)


def test_the_table():
    keys = [scaled_keys(phi) for phi in range(8)]

    def column(key: str) -> list:
        return [row[key] for row in keys]

    assert column("MODEL.NECK.OUT_CHANNELS") == [64, 88, 112, 160, 224, 288, 384, 384]
    assert column("MODEL.NECK.BIFPN.NUM_LAYERS") == [3, 4, 5, 6, 7, 7, 8, 8]
    assert column("MODEL.NECK.BIFPN.FUSION") == ["fast"] * 6 + ["sum"] * 2
    assert column("MODEL.EFFICIENTDET.DEPTH") == [3, 3, 3, 4, 4, 4, 5, 5]
    assert column("MODEL.EFFICIENTDET.ANCHOR_SCALE") == [4.0] * 7 + [5.0]
    assert [int(name[-1]) for name in column("MODEL.TIMM.NAME")] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert all(timm.list_pretrained(f"{name}.*") for name in column("MODEL.TIMM.NAME"))
    sizes = [512, 640, 768, 896, 1024, 1280, 1280, 1536]
    assert column("INPUT.MIN_SIZE_TRAIN") == [(size,) for size in sizes]
    for key in ("INPUT.MAX_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"):
        assert column(key) == sizes


def test_the_neck_by_itself_knows_the_same_coefficients():
    for phi in range(8):
        ours, keys = compound_scaling(phi), scaled_keys(phi)
        fusion = "fast" if ours.weighted else "sum"
        names = ("MODEL.NECK.OUT_CHANNELS", "MODEL.NECK.BIFPN.NUM_LAYERS", "MODEL.NECK.BIFPN.FUSION")
        assert (ours.width, ours.num_layers, fusion) == tuple(keys[name] for name in names)


def test_the_files_differ_in_the_coefficient_alone():
    for phi in range(8):
        content = yaml.safe_load((CONFIGS / f"d{phi}.yaml").read_text())
        assert content == {
            "_BASE_": "Base-EfficientDet.yaml",
            "MODEL": {"EFFICIENTDET": {"PHI": phi}},
            "OUTPUT_DIR": f"output/efficientdet/d{phi}",
        }


def test_training_follows_the_paper():
    cfg = config(0)
    assert cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH == pytest.approx(300 * 118287, rel=1e-4)
    assert cfg.SOLVER.WARMUP_ITERS * cfg.SOLVER.IMS_PER_BATCH == pytest.approx(118287, rel=1e-3)
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM) == ("SGD", 0.16, 0.9)
    assert (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM) == (4e-5, 0.0)
    assert tuple(cfg.INPUT.SCALE_JITTER) == (0.1, 2.0)
    assert cfg.SOLVER.EMA_DECAY == 0.9998
    node = cfg.MODEL.EFFICIENTDET
    assert (node.FOCAL_ALPHA, node.FOCAL_GAMMA, node.HUBER_DELTA, node.BOX_WEIGHT) == (0.25, 1.5, 0.1, 50.0)


def test_a_file_and_an_option_say_more_than_the_coefficient(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {CONFIGS / 'd3.yaml'}\nMODEL:\n  NECK:\n    OUT_CHANNELS: 96\n")
    cfg = load_config(path, ["INPUT.MAX_SIZE_TEST", 640])
    assert (cfg.MODEL.NECK.OUT_CHANNELS, cfg.INPUT.MAX_SIZE_TEST) == (96, 640)
    assert (cfg.MODEL.NECK.BIFPN.NUM_LAYERS, cfg.INPUT.MIN_SIZE_TEST) == (6, 896)
    assert load_config(path, ["MODEL.EFFICIENTDET.PHI", 1]).MODEL.NECK.BIFPN.NUM_LAYERS == 4


def test_without_a_coefficient_nothing_is_set():
    cfg = load_config(options=["MODEL.META_ARCHITECTURE", "EfficientDet"])
    assert scaled_keys(cfg.MODEL.EFFICIENTDET.PHI) == {}
    assert (cfg.MODEL.NECK.OUT_CHANNELS, cfg.MODEL.EFFICIENTDET.DEPTH) == (256, 3)


@pytest.mark.parametrize("phi", [-2, 8])
def test_other_coefficients_are_refused(phi):
    with pytest.raises(EfficientDetConfigError, match=f"MODEL.EFFICIENTDET.PHI is {phi}; it must be 0 to 7, or -1"):
        scaled_keys(phi)
    with pytest.raises(InputError, match=f"^MODEL.EFFICIENTDET.PHI is {phi}; it must be 0 to 7"):
        load_config(CONFIGS / "d0.yaml", ["MODEL.EFFICIENTDET.PHI", phi])
