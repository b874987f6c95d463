"""COCO's average precision for boxes, with any data set that is or can be written in COCO's format."""

import contextlib
import copy
import io
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .evaluator import DatasetEvaluator
from .proposal_recall import _evaluate_box_proposals, _save_proposals

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class COCOEvaluator(DatasetEvaluator):
    """AP, AP50, AP75, of small, medium and large objects, and of each class, in percent, for task "bbox".

    Of models that propose regions, also the recall of these as task "box_proposals". Writes "box_proposals.pkl",
    "instances_predictions.pth" and "coco_instances_results.json" into `output_dir`.

    Args:
        dataset_name: a registered data set with metadata "json_file" (COCO format); any other is converted first.
        tasks: ["bbox"]; None finds the tasks from the predictions.
        distributed: whether to collect the predictions of all processes in the main one; otherwise each evaluates
            its own.
        output_dir: where to write; None writes nothing. Required for data sets that are not in COCO's format.
        max_dets_per_image: how many detections per image count; 100 by default. COCO's table says [1, 10, this].
        use_fast_impl: use the compiled implementation where there is one. Here there is none: results come from
            pycocotools either way.
        allow_cached_coco: whether a conversion that is already in `output_dir` is used again.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        allow_cached_coco: bool = True,
    ):
        self._logger = logging.getLogger(__name__)
        if use_fast_impl:
            self._logger.info("Fast COCO eval is not built. Falling back to official COCO eval.")
        if isinstance(tasks, CfgNode):
            self._logger.warning(
                "COCO Evaluator instantiated using config, this is deprecated behavior."
                " Please pass in explicit arguments instead."
            )
            tasks = None
        if tasks is not None and set(tasks) != {"bbox"}:
            raise ValueError(f"COCOEvaluator evaluates the task 'bbox' only. Got tasks={tasks}.")
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets_per_image = [1, 10, 100 if max_dets_per_image is None else max_dets_per_image]
        self._cpu_device = torch.device("cpu")
        self._predictions: list = []
        self._results: dict[str, Any] = OrderedDict()

        self._metadata = MetadataCatalog.get(dataset_name)
        if not hasattr(self._metadata, "json_file"):
            self._convert_dataset(dataset_name, allow_cached_coco)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api = COCO(PathManager.get_local_path(self._metadata.json_file))
        # Test sets are published without annotations; then results are only written.
        self._do_evaluation = "annotations" in self._coco_api.dataset

    def _convert_dataset(self, dataset_name: str, allow_cached: bool) -> None:
        if self._output_dir is None:
            raise ValueError("output_dir must be provided to COCOEvaluator for datasets not in COCO format.")
        self._logger.info(f"Trying to convert '{dataset_name}' to COCO format ...")
        json_file = os.path.join(self._output_dir, f"{dataset_name}_coco_format.json")
        self._metadata.json_file = json_file
        convert_to_coco_json(dataset_name, json_file, allow_cached=allow_cached)

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in one batch.

        Args:
            inputs: each with "image_id".
            outputs: each with "instances" (`pred_boxes`, xyxy, absolute, `scores`, `pred_classes`) or "proposals"
                (`proposal_boxes` and `objectness_logits`), or both.
        """
        for input, output in zip(inputs, outputs, strict=False):
            prediction = {"image_id": input["image_id"]}
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                prediction["instances"] = instances_to_coco_json(instances, input["image_id"])
            if "proposals" in output:
                prediction["proposals"] = output["proposals"].to(self._cpu_device)
            if len(prediction) > 1:
                self._predictions.append(prediction)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Evaluate all predictions since `reset`.

        Args:
            img_ids: ids of the images to evaluate; None for all.

        Returns:
            {"bbox": {"AP": …, "AP50": …, …, "AP-person": …, …}}, and {"box_proposals": {"AR@100": …, "ARs@100": …, …}}
            if there are proposals; {} in processes other than the main one.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if len(predictions) == 0:
            self._logger.warning("[COCOEvaluator] Did not receive valid predictions.")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "instances_predictions.pth"), "wb") as f:
                torch.save(predictions, f)
        self._results = OrderedDict()
        if "proposals" in predictions[0]:
            self._eval_box_proposals(predictions)
        if "instances" in predictions[0]:
            self._eval_predictions(predictions, img_ids=img_ids)
        return copy.deepcopy(self._results)

    def _eval_predictions(self, predictions: list[dict], img_ids: Sequence[int] | None = None) -> None:
        self._logger.info("Preparing results for COCO format ...")
        coco_results = list(itertools.chain(*(prediction["instances"] for prediction in predictions)))
        if hasattr(self._metadata, "thing_dataset_id_to_contiguous_id"):
            coco_results = _to_dataset_ids(coco_results, self._metadata.thing_dataset_id_to_contiguous_id)
        if self._output_dir:
            file_path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info(f"Saving results to {file_path}")
            with PathManager.open(file_path, "w") as f:
                f.write(json.dumps(coco_results))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return

        self._logger.info("Evaluating predictions with official COCO API...")
        for task in self._tasks or ["bbox"]:
            coco_eval = None  # pycocotools cannot load an empty list
            if coco_results:
                coco_eval = _evaluate_predictions_on_coco(
                    self._coco_api, coco_results, task, img_ids=img_ids, max_dets_per_image=self._max_dets_per_image
                )
            self._results[task] = self._derive_coco_results(
                coco_eval, task, class_names=self._metadata.get("thing_classes")
            )

    def _eval_box_proposals(self, predictions: list[dict]) -> None:
        """Recall of the best 100 and 1000 proposals, of objects of all sizes, small, medium and large."""
        if self._output_dir:
            _save_proposals(predictions, os.path.join(self._output_dir, "box_proposals.pkl"))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return

        self._logger.info("Evaluating bbox proposals ...")
        results = {}
        for limit in (100, 1000):
            for area, suffix in {"all": "", "small": "s", "medium": "m", "large": "l"}.items():
                stats = _evaluate_box_proposals(predictions, self._coco_api, area=area, limit=limit)
                results[f"AR{suffix}@{limit:d}"] = float(stats["ar"].item() * 100)
        self._logger.info("Proposal metrics: \n" + create_small_table(results))
        self._results["box_proposals"] = results

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Log and return the metrics, in percent; NaN where there is nothing to measure."""
        if coco_eval is None:
            self._logger.warning("No predictions from the model!")
            return {metric: float("nan") for metric in _METRICS}
        results = {
            metric: float(stat * 100 if stat >= 0 else "nan")
            for metric, stat in zip(_METRICS, coco_eval.stats, strict=False)
        }
        self._logger.info(f"Evaluation results for {iou_type}: \n" + create_small_table(results))
        if not np.isfinite(sum(results.values())):
            self._logger.info("Some metrics cannot be computed and is shown as NaN.")
        if class_names is None or len(class_names) <= 1:
            return results

        per_category = _ap_per_category(coco_eval, class_names)
        self._logger.info(f"Per-category {iou_type} AP: \n" + _category_table(per_category))
        results.update({"AP-" + name: ap for name, ap in per_category})
        return results


def _to_dataset_ids(coco_results: list[dict], id_map: dict[int, int]) -> list[dict]:
    """The results with the data set's category ids in place of the model's classes 0…K-1."""
    num_classes = len(id_map)
    assert sorted(id_map.values()) == list(range(num_classes)), "Contiguous ids must be 0…K-1."
    dataset_ids = {contiguous: original for original, contiguous in id_map.items()}
    for result in coco_results:
        predicted = result["category_id"]
        assert predicted < num_classes, (
            f"A prediction has class={predicted}, but the dataset only has {num_classes} classes and "
            f"predicted class id should be in [0, {num_classes - 1}]."
        )
    return [result | {"category_id": dataset_ids[result["category_id"]]} for result in coco_results]


def _ap_per_category(coco_eval: COCOeval, class_names: Sequence[str]) -> list[tuple[str, float]]:
    precisions = coco_eval.eval["precision"]  # (IoU, recall, class, area range, max detections)
    assert len(class_names) == precisions.shape[2], (
        f"The metadata has {len(class_names)} classes, the annotations {precisions.shape[2]}."
    )
    per_category = []
    for i, name in enumerate(class_names):
        precision = precisions[:, :, i, 0, -1]
        precision = precision[precision > -1]
        per_category.append((str(name), float(np.mean(precision) * 100 if precision.size else "nan")))
    return per_category


def _category_table(per_category: list[tuple[str, float]]) -> str:
    columns = min(6, len(per_category) * 2)
    cells = list(itertools.chain(*per_category))
    return tabulate(
        itertools.zip_longest(*[cells[i::columns] for i in range(columns)]),
        tablefmt="pipe",
        floatfmt=".3f",
        headers=["category", "AP"] * (columns // 2),
        numalign="left",
    )


def instances_to_coco_json(instances: Instances, img_id: int | str) -> list[dict]:
    """The detections of one image in COCO's result format: "image_id", "category_id", "bbox" (xywh), "score"."""
    if len(instances) == 0:
        return []
    boxes = BoxMode.convert(instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
    return [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in zip(classes, boxes, scores, strict=True)
    ]


class COCOevalMaxDets(COCOeval):
    """`COCOeval` whose AP counts the configured number of detections: pycocotools' always counts 100."""

    def summarize(self) -> None:
        table = io.StringIO()
        with contextlib.redirect_stdout(table):
            super().summarize()
        precision = self.eval["precision"][:, :, :, 0, -1]
        precision = precision[precision > -1]
        self.stats[0] = np.mean(precision) if precision.size else -1
        ap_line, *others = table.getvalue().splitlines()
        title = ap_line.rpartition("maxDets=")[0]
        print(f"{title}maxDets={self.params.maxDets[-1]:>3d} ] = {self.stats[0]:0.3f}", *others, sep="\n")


def _evaluate_predictions_on_coco(
    coco_gt: COCO,
    coco_results: list[dict],
    iou_type: str,
    img_ids: Sequence[int] | None = None,
    max_dets_per_image: Sequence[int] | None = None,
) -> COCOeval:
    """Run COCO's evaluation of at least one result, print its table, and return it."""
    assert len(coco_results) > 0
    max_dets_per_image = [1, 10, 100] if max_dets_per_image is None else list(max_dets_per_image)
    assert len(max_dets_per_image) >= 3, "COCOeval requires maxDets (and max_dets_per_image) to have length at least 3"
    evaluation = COCOeval if max_dets_per_image[2] == 100 else COCOevalMaxDets
    coco_eval = evaluation(coco_gt, coco_gt.loadRes(coco_results), iou_type)
    coco_eval.params.maxDets = max_dets_per_image
    if img_ids is not None:
        coco_eval.params.imgIds = img_ids
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    return coco_eval
