"""Recall of the proposals of models that propose regions, beside the COCO metrics of those that detect objects."""

import itertools
from collections.abc import Sequence

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .coco import FastCOCOEvaluator


class COCOAndProposalEvaluator(FastCOCOEvaluator):
    """`FastCOCOEvaluator` that also takes proposals, and gives their recall as detectron2's `COCOEvaluator` does.

    The arguments are those of `FastCOCOEvaluator`. With an output folder, the proposals are written there as
    box_proposals.pkl, which `DATASETS.PROPOSAL_FILES_TRAIN` and `_TEST` can name.
    """

    def reset(self) -> None:
        super().reset()
        self._proposals: list[dict] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in one batch.

        Args:
            inputs: with "image_id".
            outputs: with "instances" as detectors make them, or "proposals" with `proposal_boxes` (xyxy, in pixels of
                the original image) and `objectness_logits`, or both.
        """
        for x, output in zip(inputs, outputs, strict=True):
            if "proposals" in output:
                self._proposals.append({"image_id": x["image_id"], "proposals": output["proposals"].to("cpu")})
            if "instances" in output:
                super().process([x], [output])

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Metrics in percent; {} outside the main process.

        Returns:
            {"box_proposals": {"AR@100": …, "ARs@100": …, …, "ARl@1000": …}} if there are proposals, of all images, and
            {"bbox": …} as `FastCOCOEvaluator.evaluate` gives it if there are detections.
        """
        found = any(self._everywhere(bool(self._proposals)))
        results = super().evaluate(img_ids) if not found or any(self._everywhere(bool(self._predictions))) else {}
        if not found:
            return results
        proposals = comm.gather(self._proposals, dst=0) if self._distributed else [self._proposals]
        if not comm.is_main_process():
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
        self._results = {}
        self._eval_box_proposals(list(itertools.chain(*proposals)))
        return {**self._results, **results}

    def _everywhere(self, value: bool) -> list[bool]:
        """What `value` is in each of the processes that evaluate together."""
        return comm.all_gather(value) if self._distributed else [value]
