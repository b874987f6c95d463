"""Every neck under every detector: it trains, evaluates, resumes, and prepared for inference it gives the same."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from detectron2.utils.env import seed_all_rng
from PIL import Image
from torch.testing import assert_close

from necks import NECK_REGISTRY
from sparsercnn import load_config, prepare_for_inference
from sparsercnn.engine import Trainer, build_model
from sparsercnn.fast.training import prepare_for_training
from sparsercnn.visualization.stages import predict_stages

NECKS = sorted(name for name, _ in NECK_REGISTRY)
SMALL = """
MODEL.DEVICE cpu MODEL.BACKBONE.NAME build_neck_backbone MODEL.BACKBONE.FREEZE_AT 0
MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.NORM BN
MODEL.RESNETS.OUT_FEATURES ["res2","res3","res4","res5"] MODEL.NECK.NORM BN MODEL.NECK.OUT_CHANNELS 16
SOLVER.BASE_LR 0.0001 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 1 SOLVER.WARMUP_ITERS 0 SOLVER.STEPS ()
DATALOADER.NUM_WORKERS 0 DATASETS.TRAIN ('pictures',) DATASETS.TEST ('pictures',)
INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
"""
# The options of each detector; all of them train on three classes.
DETECTORS = {
    "SparseRCNN": """
        MODEL.META_ARCHITECTURE SparseRCNN MODEL.SparseRCNN.HIDDEN_DIM 16 MODEL.SparseRCNN.NHEADS 4
        MODEL.SparseRCNN.DIM_FEEDFORWARD 32 MODEL.SparseRCNN.DIM_DYNAMIC 4 MODEL.SparseRCNN.NUM_HEADS 2
        MODEL.SparseRCNN.NUM_PROPOSALS 8 MODEL.SparseRCNN.NUM_CLASSES 3
    """,
    "FasterRCNN": """
        MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.NECK.NUM_LEVELS 5
        MODEL.ANCHOR_GENERATOR.SIZES [[16],[32],[64],[128],[256]]
        MODEL.RPN.IN_FEATURES ["p2","p3","p4","p5","p6"]
        MODEL.RPN.POST_NMS_TOPK_TRAIN 50 MODEL.RPN.POST_NMS_TOPK_TEST 20
        MODEL.ROI_HEADS.NAME StandardROIHeads MODEL.ROI_HEADS.IN_FEATURES ["p2","p3","p4","p5"]
        MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 32
        MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead MODEL.ROI_BOX_HEAD.NUM_FC 1 MODEL.ROI_BOX_HEAD.FC_DIM 16
        MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 7
    """,
    "EfficientDet": """
        MODEL.META_ARCHITECTURE EfficientDet MODEL.NECK.NUM_LEVELS 5 MODEL.EFFICIENTDET.NUM_CLASSES 3
        MODEL.EFFICIENTDET.IN_FEATURES ["p2","p3","p4","p5","p6"] MODEL.EFFICIENTDET.DEPTH 1
        MODEL.EFFICIENTDET.TOPK_CANDIDATES 500
    """,
}


def config(detector: str, neck: str, *options: object) -> CfgNode:
    words = [*SMALL.split(), *DETECTORS[detector].split(), "MODEL.NECK.NAME", neck, *map(str, options)]
    return load_config(options=words)


@pytest.fixture(scope="module", autouse=True)
def pictures(tmp_path_factory):
    """A registered data set of two pictures with one rectangle each."""
    folder = tmp_path_factory.mktemp("pictures")
    images, annotations = [], []
    for i in (1, 2):
        pixels = np.random.default_rng(i).integers(0, 80, (64, 64, 3), dtype=np.uint8)
        pixels[8 : 8 + 16 * i, 8:40] = 80 * i + 60
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
        box, area = [8, 8, 32, 16 * i], 32 * 16 * i
        annotations.append({"id": i, "image_id": i, "category_id": i, "bbox": box, "area": area, "iscrowd": 0})
    categories = [{"id": i, "name": str(i)} for i in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    register_coco_instances("pictures", {}, str(folder / "annotations.json"), str(folder))
    yield
    DatasetCatalog.remove("pictures")
    MetadataCatalog.remove("pictures")
    for name in ("detectron2", "fvcore"):  # the trainer took these logs over
        logging.getLogger(name).propagate = True
        logging.getLogger(name).handlers.clear()


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("neck", NECKS)
def test_trains_evaluates_and_resumes(detector, neck, tmp_path):
    seed_all_rng(1)
    cfg = config(detector, neck, "OUTPUT_DIR", tmp_path)
    trainer = Trainer(cfg)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert all(p.grad is not None for name, p in trainer.model.named_parameters() if name in before)
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters() if name in before)
    metrics = json.loads((tmp_path / "inference" / "pictures" / "metrics.json").read_text())
    assert 0 <= metrics["bbox"]["AP"] <= 100

    cfg.SOLVER.MAX_ITER = 2
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 1
    for name, p in resumed.model.named_parameters():
        assert_close(p, trainer.model.get_parameter(name), msg=name)
    resumed.train()
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 1
    assert_the_same_when_prepared(resumed.model.eval())


def assert_the_same_when_prepared(model: torch.nn.Module) -> None:
    (ours,), (plain,) = prepare_for_inference(model)(batch()[:1]), model(batch()[:1])
    assert len(plain["instances"]) > 0
    assert_close(ours["instances"].scores, plain["instances"].scores, rtol=0, atol=1e-4)


def batch() -> list[dict]:
    target = Instances((64, 96))
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 50.0], [30.0, 5.0, 90.0, 60.0]]))
    target.gt_classes = torch.tensor([0, 2])
    image = torch.randint(256, (3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [{"image": image, "instances": target}] * 2


@pytest.mark.parametrize("neck", NECKS)
def test_learns_and_is_the_same_when_prepared(neck):
    torch.manual_seed(0)
    model = build_model(config("SparseRCNN", neck)).train()
    prepare_for_training(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    totals = []
    for _ in range(12):
        total = sum(model(batch()).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0]
    model.eval()
    (ours,) = prepare_for_inference(model).run(predict_stages, batch()[:1])
    (plain,) = predict_stages(model, batch()[:1])
    assert_close(ours[-1].scores, plain[-1].scores, rtol=0, atol=1e-4)
    assert_close(ours[-1].pred_boxes.tensor, plain[-1].pred_boxes.tensor, rtol=0, atol=0.05)
