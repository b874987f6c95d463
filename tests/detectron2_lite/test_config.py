"""Config trees, YAML files that inherit, and objects built from a config."""

import pickle

import pytest
import yaml
from detectron2.config import (
    CfgNode,
    configurable,
    downgrade_config,
    get_cfg,
    global_cfg,
    set_global_cfg,
    upgrade_config,
)


def write(path, text):
    path.write_text(text)
    return str(path)


def test_published_rcnn_yaml_merges_unchanged(tmp_path):
    base = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {NAME: "build_resnet_fpn_backbone"}
  RESNETS: {OUT_FEATURES: ["res2", "res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"]}
  ANCHOR_GENERATOR:
    SIZES: [[32], [64], [128], [256], [512]]
    ASPECT_RATIOS: [[0.5, 1.0, 2.0]]
  RPN: {IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"], PRE_NMS_TOPK_TRAIN: 2000, POST_NMS_TOPK_TEST: 1000}
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"]}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 2, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: "MaskRCNNConvUpsampleHead", NUM_CONV: 4, POOLER_RESOLUTION: 14}
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST: ("coco_2017_val",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.02
  STEPS: (60000, 80000)
  MAX_ITER: 90000
INPUT:
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
VERSION: 2
"""
    write(tmp_path / "base.yaml", base)
    child = write(
        tmp_path / "child.yaml",
        '_BASE_: "base.yaml"\nMODEL: {WEIGHTS: "detectron2://a.pkl", RESNETS: {DEPTH: 101}}\nSOLVER: {MAX_ITER: 5}\n',
    )
    cfg = get_cfg()
    cfg.merge_from_file(child)
    assert cfg.MODEL.RESNETS.DEPTH == 101
    assert cfg.SOLVER.MAX_ITER == 5
    assert cfg.SOLVER.STEPS == (60000, 80000)
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",)
    assert cfg.MODEL.RPN.IN_FEATURES == ["p2", "p3", "p4", "p5", "p6"]


def test_base_may_be_a_list_whose_later_files_win(tmp_path):
    write(tmp_path / "a.yaml", "SEED: 1\nOUTPUT_DIR: a\nVERSION: 2\n")
    write(tmp_path / "b.yaml", "SEED: 2\nVERSION: 2\n")
    cfg = get_cfg()
    cfg.merge_from_file(write(tmp_path / "c.yaml", "_BASE_: [a.yaml, b.yaml]\nVIS_PERIOD: 3\n"))
    assert (cfg.SEED, cfg.OUTPUT_DIR, cfg.VIS_PERIOD) == (2, "a", 3)


def test_mistakes_in_files_are_refused(tmp_path):
    cfg = get_cfg()
    with pytest.raises(AssertionError, match="nowhere.yaml"):
        cfg.merge_from_file(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(KeyError, match="MODEL.RESNET"):
        cfg.merge_from_file(write(tmp_path / "key.yaml", "MODEL: {RESNET: {DEPTH: 18}}\nVERSION: 2\n"))
    with pytest.raises(ValueError, match="Type mismatch"):
        cfg.merge_from_file(write(tmp_path / "type.yaml", "SOLVER: {MAX_ITER: [1]}\nVERSION: 2\n"))
    with pytest.raises(AssertionError, match="v3"):
        cfg.merge_from_file(write(tmp_path / "version.yaml", "SEED: 1\nVERSION: 3\n"))


def test_file_of_version_1_is_upgraded(tmp_path, detectron2_log):
    text = """
VERSION: 1
MODEL:
  WEIGHT: "x.pkl"
  PANOPTIC_FPN: {COMBINE_ON: False, RPN_LOSS_SCALE: 3.0}
  ROI_HEADS: {SCORE_THRESH: 0.25, NMS: 0.75}
  RPN: {ANCHOR_SIZES: [[16], [32]], ANCHOR_ASPECT_RATIOS: [[1.0]]}
TEST: {DETECTIONS_PER_IMG: 7, AUG_ON: True, AUG_MIN_SIZES: [5, 6]}
"""
    cfg = get_cfg()
    cfg.MINE = CfgNode({"A": 1})
    expected = cfg.clone()
    expected.merge_from_list(
        ["MODEL.WEIGHTS", "x.pkl", "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False, "MODEL.RPN.LOSS_WEIGHT", 3.0]
        + ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.25, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.75]
        + ["MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32]], "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]]
        + ["TEST.DETECTIONS_PER_IMAGE", 7, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (5, 6)]
    )
    path = write(tmp_path / "old.yaml", text)
    cfg.merge_from_file(path)
    assert cfg == expected
    assert f"Loading an old v1 config file '{path}' by automatically upgrading to v2." in detectron2_log.text


def test_file_of_version_0_is_upgraded(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_file(write(tmp_path / "old.yaml", "VERSION: 0\nMODEL: {RPN_HEAD: {NAME: Mine}, WEIGHT: x.pkl}\n"))
    assert (cfg.MODEL.RPN.HEAD_NAME, cfg.MODEL.WEIGHTS, cfg.VERSION) == ("Mine", "x.pkl", 2)
    assert "RPN_HEAD" not in cfg.MODEL


def test_anchors_of_version_1_are_those_of_the_detector(tmp_path):
    anchors = "RPN: {ANCHOR_SIZES: [[16]]}, RETINANET: {ANCHOR_SIZES: [[64]]}"
    for name, size in {"RetinaNet": 64, "GeneralizedRCNN": 16}.items():
        cfg = get_cfg()
        text = f"VERSION: 1\nMODEL: {{META_ARCHITECTURE: {name}, {anchors}}}\n"
        cfg.merge_from_file(write(tmp_path / "old.yaml", text))
        assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[size]]


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ('MODEL: {WEIGHT: "x.pkl"}\n', "Assuming it to be v1."),
        ("TEST: {AUG_ON: True}\n", "Assuming it to be v1."),
        ('MODEL: {WEIGHTS: "x.pkl"}\n', "Assuming it to be compatible with latest v2."),
    ],
)
def test_version_of_a_file_that_does_not_state_it(tmp_path, detectron2_log, text, guess):
    path = write(tmp_path / "file.yaml", text)
    get_cfg().merge_from_file(path)
    assert f"Config '{path}' has no VERSION. {guess}" in detectron2_log.text


def test_downgraded_config_is_restored_by_an_upgrade():
    cfg = get_cfg()
    cfg.MINE = 1
    old = downgrade_config(cfg, to_version=0)
    assert old.VERSION == 0 and old.MODEL.RPN_HEAD.NAME == cfg.MODEL.RPN.HEAD_NAME
    assert "AUG" not in old.TEST and "ANCHOR_SIZES" in old.MODEL.RPN
    assert upgrade_config(old, to_version=1).VERSION == 1
    assert upgrade_config(old) == cfg == downgrade_config(cfg, to_version=2)
    with pytest.raises(AssertionError):
        downgrade_config(old, to_version=1)
    with pytest.raises(AssertionError):
        upgrade_config(cfg, to_version=1)


def test_yaml_that_runs_code_needs_allow_unsafe(tmp_path):
    path = write(tmp_path / "unsafe.yaml", "SEED: !!python/object/apply:eval ['1 + 1']\nVERSION: 2\n")
    with pytest.raises(yaml.constructor.ConstructorError):
        get_cfg().merge_from_file(path, allow_unsafe=False)
    cfg = get_cfg()
    cfg.merge_from_file(path, allow_unsafe=True)
    assert cfg.SEED == 2


def test_options_are_parsed_and_typed():
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", "0.5", "DATASETS.TRAIN", "('x',)", "MODEL.DEVICE", "cpu"])
    assert (cfg.SOLVER.BASE_LR, cfg.DATASETS.TRAIN, cfg.MODEL.DEVICE) == (0.5, ("x",), "cpu")
    with pytest.raises((KeyError, AssertionError), match="SOLVER.NOTHING"):
        cfg.merge_from_list(["SOLVER.NOTHING", "1"])


def test_dump_is_sorted_and_loads_back(tmp_path):
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER = 7
    text = cfg.dump()
    top = [line.split(":")[0] for line in text.splitlines() if line[0].isalpha()]
    assert top == sorted(top)
    other = get_cfg()
    other.merge_from_file(write(tmp_path / "dumped.yaml", text))
    assert yaml.safe_load(other.dump()) == yaml.safe_load(text)
    assert other.SOLVER.MAX_ITER == 7


def test_frozen_config_does_not_change_and_copies_are_independent():
    cfg = get_cfg()
    copy = cfg.clone()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SEED = 3
    copy.SEED = 4
    assert get_cfg().SEED == cfg.SEED == -1
    cfg.defrost()
    cfg.SEED = 3
    assert pickle.loads(pickle.dumps(cfg)) == cfg


def test_global_config_takes_the_keys_of_another():
    cfg = CfgNode({"A": {"B": 1}})
    set_global_cfg(cfg)
    assert global_cfg.A.B == 1
    set_global_cfg(CfgNode())
    assert "A" not in global_cfg


class Plain:
    @configurable
    def __init__(self, a, b=2, c=3):
        self.values = (a, b, c)

    @classmethod
    def from_config(cls, cfg, b=None):
        ret = {"a": cfg.A}
        return ret if b is None else {**ret, "b": b + 100}


class Child(Plain):
    """Inherits both."""


class WithRest:
    @configurable
    def __init__(self, a, **rest):
        self.values = (a, rest)

    @classmethod
    def from_config(cls, cfg, *args, **kwargs):
        return {"a": cfg.A, "args": args, **kwargs}


@pytest.fixture
def cfg():
    return CfgNode({"A": 1})


@pytest.mark.parametrize("kind", [Plain, Child])
def test_configurable_class(cfg, kind):
    assert kind(5).values == (5, 2, 3)
    assert kind(a=5, c=6).values == (5, 2, 6)
    assert kind(cfg).values == (1, 2, 3)
    assert kind(cfg=cfg).values == (1, 2, 3)
    assert kind(cfg, c=9).values == (1, 2, 9)
    assert kind(cfg, b=1).values == (1, 101, 3)
    assert kind(cfg, a=7).values == (7, 2, 3)


def test_configurable_passes_everything_to_a_from_config_with_rest_arguments(cfg):
    assert WithRest(cfg, 4, z=5).values == (1, {"args": (4,), "z": 5})


def test_configurable_function(cfg):
    @configurable(from_config=lambda cfg, b=0: {"a": cfg.A, "b": b})
    def make(a, b, c=0):
        """Make it."""
        return a, b, c

    assert make(5, 6) == (5, 6, 0)
    assert make(cfg) == (1, 0, 0)
    assert make(cfg, b=2, c=3) == (1, 2, 3)
    assert make(cfg=cfg) == (1, 0, 0)
    assert make.__doc__ == "Make it."
    assert make.from_config(cfg) == {"a": 1, "b": 0}


def test_configurable_used_wrongly(cfg):
    class NoTranslator:
        @configurable
        def __init__(self, a): ...

    class NotAClassmethod(NoTranslator):
        def from_config(cfg):
            return {}

    class FirstArgumentIsNotCfg(NoTranslator):
        @classmethod
        def from_config(cls, config):
            return {}

    with pytest.raises(AttributeError, match="must have a 'from_config' classmethod"):
        NoTranslator(cfg)
    with pytest.raises(TypeError, match="must have a 'from_config' classmethod"):
        NotAClassmethod(cfg)
    with pytest.raises(TypeError, match="must take 'cfg' as the first argument"):
        FirstArgumentIsNotCfg(cfg)
    with pytest.raises(AssertionError, match="Incorrect use of @configurable"):
        configurable(lambda cfg: None)
