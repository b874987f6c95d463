from pathlib import Path

import pytest
from detectron2.modeling import META_ARCH_REGISTRY

from sparsercnn import load_config
from sparsercnn.doctor.config_findings import values_findings
from sparsercnn.engine import check_model

CONFIGS = Path(__file__).parent.parent / "configs"
PUBLISHED = {
    "sparsercnn.res50.100pro.3x.yaml": (50, 100, False),
    "sparsercnn.res50.300pro.3x.yaml": (50, 300, True),
    "sparsercnn.res101.100pro.3x.yaml": (101, 100, False),
    "sparsercnn.res101.300pro.3x.yaml": (101, 300, True),
}
# As the published configs state things, with everything in one file and tuples and quotes the way people write them.
FOREIGN = """
MODEL:
  META_ARCHITECTURE: "SparseRCNN"
  WEIGHTS: "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
  RESNETS:
    DEPTH: 50
    STRIDE_IN_1X1: False
  ROI_BOX_HEAD:
    POOLER_TYPE: "ROIAlignV2"
  SparseRCNN:
    NUM_PROPOSALS: 300
    NUM_CLASSES: 80
SOLVER:
  STEPS: (210000, 250000)
  CLIP_GRADIENTS:
    ENABLED: True
    CLIP_TYPE: "full_model"
  OPTIMIZER: "ADAMW"
  BACKBONE_MULTIPLIER: 1.0
INPUT:
  CROP:
    ENABLED: True
    TYPE: "absolute_range"
    SIZE: (384, 600)
  FORMAT: "RGB"
TEST:
  EVAL_PERIOD: 7330
DATALOADER:
  FILTER_EMPTY_ANNOTATIONS: False
VERSION: 2
"""


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_loads(path):
    cfg = load_config(path)
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        assert max(cfg.SOLVER.STEPS, default=0) < cfg.SOLVER.MAX_ITER
    assert cfg.SOLVER.WARMUP_ITERS < cfg.SOLVER.MAX_ITER
    if not path.name.startswith("fpn_paper"):  # tools/fpn_tables.py completes these
        check_model(cfg, with_weights=False)
        assert values_findings(cfg) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name):
    cfg = load_config(CONFIGS / name)
    depth, proposals, crop = PUBLISHED[name]
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.SparseRCNN.NUM_PROPOSALS, cfg.INPUT.CROP.ENABLED) == (
        depth,
        proposals,
        crop,
    )
    assert cfg.MODEL.WEIGHTS.endswith(f"R-{depth}.pkl")
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.IMS_PER_BATCH) == (2.5e-5, 1e-4, 16)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS) == (270000, (210000, 250000), 1000)
    assert (cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE) == ("full_model", 1.0)
    assert cfg.INPUT.FORMAT == "RGB" and cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert (min(cfg.INPUT.MIN_SIZE_TRAIN), max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN) == (480, 800, 1333)


def test_the_crowdhuman_model_trains_for_50_epochs():
    cfg = load_config(CONFIGS / "sparsercnn.crowdhuman.res50.500pro.50e.yaml")
    assert cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH == 50 * 15000
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.SparseRCNN.NUM_PROPOSALS, cfg.MODEL.SparseRCNN.NUM_CLASSES) == (
        50,
        500,
        1,
    )


def test_a_published_file_loads_unchanged(tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text(FOREIGN)
    cfg = load_config(path)
    assert cfg.INPUT.CROP.SIZE == [384, 600] or cfg.INPUT.CROP.SIZE == (384, 600)
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == "full_model"


def test_small_configs_end_where_make_demo_and_the_readme_say():
    for name in ("quickstart", "bccd", "coco128"):
        assert load_config(CONFIGS / f"{name}.yaml").OUTPUT_DIR == f"output/{name}"
