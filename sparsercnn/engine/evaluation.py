"""`EvaluatingTrainer`: evaluation on prepared copies of a model, which continues where it was killed."""

import functools
import logging
import os
from collections import OrderedDict

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator, print_csv_format
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ..data import SparseRCNNDatasetMapper
from ..data.coco_dataset import is_large, open_coco_dataset
from ..errors import InputError
from ..evaluation.digest import evaluation_digest
from ..evaluation.inference import evaluate
from ..evaluation.metrics_file import write_metrics
from ..evaluation.proposals import COCOAndProposalEvaluator
from ..evaluation.stages import with_stages
from ..evaluation.test_time_augmentation import SparseRCNNWithTTA
from ..evaluation.tiles import TiledModel
from ..evaluation.unfinished import UnfinishedEvaluation
from .build import build_inference_model


class EvaluatingTrainer(DefaultTrainer):
    """detectron2's default trainer with the evaluation of this project; all of it are class methods."""

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        if cfg.TEST.TILE_SIZE:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.INPUT.MIN_SIZE_TEST = 0  # the tiles of a picture are resized, not the picture
        mapper = SparseRCNNDatasetMapper(cfg, is_train=False)
        if is_large(dataset_name) and not cfg.MODEL.LOAD_PROPOSALS:
            dataset = open_coco_dataset(dataset_name, cfg.OUTPUT_DIR)
            return build_detection_test_loader(dataset, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """The evaluator for the data set's `evaluator_type`.

        Args:
            output_folder: for the predictions, OUTPUT_DIR/inference/NAME if None.

        Raises:
            InputError: no evaluator for this type.
        """
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        if kind == "coco":
            folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
            return COCOAndProposalEvaluator(dataset_name, output_dir=folder)
        raise InputError(f"data set {dataset_name} has evaluator_type {kind!r}; only coco and pascal_voc are evaluated")

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> OrderedDict:
        """Evaluate a copy of `model`, prepared for inference, on `DATASETS.TEST`.

        With `TEST.AUG` enabled it is evaluated again with test-time augmentation; these results have the suffix `_TTA`.
        So it is with each number of refinement stages in `TEST.STAGES`; the suffix is `_stage2`.
        Detections are saved in OUTPUT_DIR/inference/NAME, those of the others in OUTPUT_DIR/inference_TTA/NAME and
        OUTPUT_DIR/inference_stage2/NAME; all metrics of a data set in OUTPUT_DIR/inference/NAME/metrics.json.
        """
        module = model.module if isinstance(model, DistributedDataParallel) else model
        prepared = build_inference_model(cfg, module)
        results = cls._test(cfg, prepared, module, evaluators=evaluators)
        for stages in cfg.TEST.STAGES:
            shorter = build_inference_model(cfg, with_stages(module, stages))
            with_stage = cls._test(cfg, shorter, module, f"stage{stages}", f"inference_stage{stages}", evaluators)
            results.update({f"{key}_stage{stages}": value for key, value in with_stage.items()})
        if cfg.TEST.AUG.ENABLED:
            logging.getLogger(__name__).info("Running inference with test-time augmentation ...")
            augmented = cls._test(cfg, SparseRCNNWithTTA(cfg, prepared), module, "TTA", "inference_TTA")
            results.update({f"{key}_TTA": value for key, value in augmented.items()})
        if comm.is_main_process():
            write_metrics(cfg, results)
        return results

    @classmethod
    def _test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        weights: nn.Module,
        way: str = "",
        folder: str = "inference",
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> OrderedDict:
        """As `DefaultTrainer.test`, but an evaluation that was killed continues.

        Args:
            model: runs on the images.
            weights: the model that `model` was made of.
            way: in which it was made.
            folder: in OUTPUT_DIR, of a folder of results for each data set.
            evaluators: as for `test`. With these an evaluation does not continue: they may look at more than is kept.
        """
        if evaluators is not None:
            return super().test(cfg, model, evaluators)
        if cfg.TEST.TILE_SIZE:
            resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
            model = TiledModel(model, cfg.TEST.TILE_SIZE, cfg.TEST.TILE_OVERLAP, resize)
        results: OrderedDict = OrderedDict()
        for name in cfg.DATASETS.TEST:
            path = os.path.join(cfg.OUTPUT_DIR, folder, name)
            unfinished = UnfinishedEvaluation(path, functools.partial(evaluation_digest, cfg, weights, name, way))
            evaluator = cls.build_evaluator(cfg, name, path)
            results[name] = evaluate(model, cls.build_test_loader(cfg, name), evaluator, unfinished)
            if comm.is_main_process():
                logging.getLogger(__name__).info(f"Evaluation results for {name} in csv format:")
                print_csv_format(results[name])
        return results if len(results) != 1 else next(iter(results.values()))
