"""train_net.py from end to end on a few small pictures, and what it says about mistakes."""

import json

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import demo
from sparsercnn import load_config
from sparsercnn.data import SparseRCNNDatasetMapper
from sparsercnn.errors import InputError
from sparsercnn.evaluation.results import best_f1_threshold
from sparsercnn.evaluation.results import read_results as read_detections
from tests.tiny_run import error_of, read_results, run
from tools.contact_sheet import contact_sheet
from tools.plot_training import plot_training

pytestmark = pytest.mark.usefixtures("loggers")


def test_training_leaves_everything_a_user_looks_for(trained):
    assert (trained / "model_final.pth").is_file()
    assert list(trained.glob("events.out.tfevents.*"))
    logged = set().union(*map(json.loads, (trained / "metrics.json").read_text().splitlines()))
    assert {"total_loss", "lr", "loss_ce", "loss_bbox", "loss_giou", "loss_giou_0", "bbox/AP"} <= logged
    assert (trained / "inference" / "tiny" / "coco_instances_results.json").is_file()
    assert {"AP", "AP50", "APs", "AP-circle"} <= read_results(trained)["bbox"].keys()


def test_a_checkpoint_says_what_it_is(trained):
    metadata = torch.load(trained / "model_final.pth", weights_only=True)["metadata"]
    assert metadata["class_names"] == ["circle", "square", "triangle"]
    assert metadata["versions"]["torch"] == torch.__version__
    assert metadata["score_threshold"] == best_f1_threshold(read_detections("tiny", trained / "inference" / "tiny"))
    (trained / "again.yaml").write_text(metadata["config"])
    assert yaml.safe_load(load_config(trained / "again.yaml").dump()) == yaml.safe_load(metadata["config"])


def test_drawing_starts_at_the_score_that_the_checkpoint_says(trained, tmp_path):
    checkpoint = torch.load(trained / "model_final.pth", weights_only=True)
    checkpoint["metadata"]["score_threshold"] = 0.001
    torch.save(checkpoint, tmp_path / "model.pth")

    def drawn(*flags):
        output = str(tmp_path / "drawn.png")
        picture = DatasetCatalog.get("tiny")[0]["file_name"]
        flags = ["--config-file", str(trained / "config.yaml"), "--input", picture, "--output", output, *flags]
        assert demo.main([*flags, "--opts", "MODEL.WEIGHTS", str(tmp_path / "model.pth")]) == 0
        with Image.open(output) as image:
            return np.asarray(image)

    assert np.array_equal(drawn(), drawn("--confidence-threshold", "0.001"))
    assert not np.array_equal(drawn(), drawn("--confidence-threshold", "1"))


def test_progress_is_a_short_line(trained):
    (line,) = [line for line in (trained / "log.txt").read_text().splitlines() if "total_loss: " in line]
    words = ["iter: 2  total_loss: ", "  loss_ce: ", "  loss_bbox: ", "  loss_giou: ", "  lr: ", "  max_mem: "]
    places = [line.index(word) for word in words]
    assert places == sorted(places) and "loss_ce_0" not in line


def test_pictures_of_the_run(trained):
    for picture in (plot_training(trained), contact_sheet(trained, images=4, threshold=0.0)[0]):
        with Image.open(picture) as image:
            assert min(image.size) > 200


def test_evaluation_of_the_checkpoint_gives_the_same_numbers(trained, tmp_path):
    assert run("MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path, flags=["--eval-only"]) == 0
    assert read_results(tmp_path) == read_results(trained)


def test_evaluation_in_tiles_and_with_more_proposals(trained, tmp_path):
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path]
    assert run(*weights, "TEST.TILE_SIZE", 40, "TEST.NUM_PROPOSALS", 12, flags=["--eval-only"]) == 0
    found = json.loads((tmp_path / "inference" / "tiny" / "coco_instances_results.json").read_text())
    images = {detection["image_id"] for detection in found}
    assert len(found) > 12 * len(images)


def test_training_on_mosaics_of_other_colors(tiny, tmp_path):
    options = ["INPUT.MOSAIC", 1.0, "INPUT.COLOR_JITTER", 0.3, "SOLVER.REFERENCE_BATCH", 16]
    assert run("SOLVER.MAX_ITER", 2, *options, "OUTPUT_DIR", tmp_path) == 0


def test_predictions_are_drawn_for_tensorboard(trained, tmp_path):
    assert run("SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1, "TEST.PICTURES", 2, "OUTPUT_DIR", tmp_path) == 0
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["predictions/0", "predictions/1"]
    assert [event.step for event in events.Images("predictions/0")] == [0, 2]


def test_evaluation_with_test_time_augmentation(trained, tmp_path):
    augmentation = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48,64)", "TEST.AUG.MAX_SIZE", 96]
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path]
    assert run(*weights, *augmentation, flags=["--eval-only"]) == 0
    assert read_results(tmp_path).keys() == {"bbox", "bbox_TTA"}
    assert read_results(tmp_path)["bbox"] == read_results(trained)["bbox"]


def test_evaluation_after_a_stage_leaves_the_detections_of_all_stages_alone(trained, tmp_path):
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path]
    assert run(*weights, "TEST.STAGES", [1], flags=["--eval-only"]) == 0
    assert read_results(tmp_path).keys() == {"bbox", "bbox_stage1"}
    names = ("inference", "inference_stage1")
    of_all, of_first = ((tmp_path / name / "tiny" / "coco_instances_results.json").read_text() for name in names)
    assert of_all == (trained / "inference" / "tiny" / "coco_instances_results.json").read_text() != of_first


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["SOLVER.MAX_ITERS", 3], ["SOLVER.MAX_ITERS", "SOLVER.MAX_ITER?"]),
        (["SOLVER.MAX_ITER", "soon"], ["SOLVER.MAX_ITER", "int", "soon"]),
        (["MODEL.WEIGHTS", "gone.pth"], ["MODEL.WEIGHTS", "gone.pth"]),
        (["MODEL.BACKBONE.NAME", "build_resnet"], ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]),
        (["MODEL.ROI_HEADS.IN_FEATURES", "['p2','p9']"], ["MODEL.ROI_HEADS.IN_FEATURES", "p9", "p3"]),
        (["DATASETS.TRAIN", "('tinny',)"], ["tinny"]),
        (["MODEL.SparseRCNN.NUM_CLASSES", 4], ["MODEL.SparseRCNN.NUM_CLASSES", "4", "3"]),
        (["SOLVER.OPTIMIZER", "LION"], ["SOLVER.OPTIMIZER", "LION", "ADAMW"]),
        (["SOLVER.LR_SCHEDULER_NAME", "Never"], ["SOLVER.LR_SCHEDULER_NAME", "OneCycle"]),
        (["SOLVER.AMP.PRECISION", "int8"], ["SOLVER.AMP.PRECISION", "bfloat16"]),
        (["MODEL.BACKBONE.NAME", "build_neck_backbone", "MODEL.NECK.NAME", "FNP"], ["MODEL.NECK.NAME", "FNP", "FPN"]),
        (["MODEL.CPU_KERNELS", True], ["MODEL.CPU_KERNELS", "SOLVER.FAST"]),
    ],
)
def test_mistakes_in_the_config(tiny, tmp_path, capsys, options, words):
    message = error_of(capsys, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 2, *options)
    assert all(word in message for word in words), message


def test_an_output_folder_that_is_a_file(tiny, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "OUTPUT_DIR" in error_of(capsys, "OUTPUT_DIR", tmp_path / "file", "SOLVER.MAX_ITER", 2)


def test_an_image_that_breaks_during_training_is_named_and_what_was_learned_is_saved(
    tiny, tmp_path, capsys, monkeypatch
):
    read, calls = SparseRCNNDatasetMapper.__call__, []

    def broken(self, record):
        calls.append(record)
        if len(calls) == 2 * 2 + 1:
            raise InputError("cannot read image broken.png: truncated")
        return read(self, record)

    monkeypatch.setattr(SparseRCNNDatasetMapper, "__call__", broken)
    assert "broken.png" in error_of(capsys, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 4)
    assert torch.load(tmp_path / "model_0000001.pth", weights_only=True)["iteration"] == 1
    monkeypatch.undo()
    assert run("OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 4, flags=["--resume"]) == 0
    trainer = torch.load(tmp_path / "model_final.pth", weights_only=True)["trainer"]
    steps = [state["step"].item() for state in trainer["_trainer"]["optimizer"]["state"].values()]
    assert set(steps) == {4}


def test_images_that_cannot_be_read_may_be_skipped(tiny, tmp_path, monkeypatch):
    read = SparseRCNNDatasetMapper.__call__

    def broken(self, record):
        if self.is_train and record["file_name"].endswith("2.png"):
            raise InputError("cannot read image 2.png: truncated")
        return read(self, record)

    monkeypatch.setattr(SparseRCNNDatasetMapper, "__call__", broken)
    assert run("OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 4, "DATALOADER.BAD_IMAGES", "skip") == 0
    # Four iterations of two are two passes over four images.
    logged = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert logged[0]["replaced_images"] == 2
    assert (tmp_path / "log.txt").read_text().count("cannot read image 2.png: truncated; skipped") == 1


def test_checkpoint_of_another_architecture(trained, tmp_path, capsys):
    options = ["MODEL.WEIGHTS", trained / "model_final.pth", "MODEL.SparseRCNN.DIM_DYNAMIC", 4, "OUTPUT_DIR", tmp_path]
    assert "another architecture" in error_of(capsys, *options)


def test_operations_are_deterministic_where_the_config_asks_for_it(tiny, loggers, tmp_path):
    try:
        assert run("SOLVER.MAX_ITER", 2, "SOLVER.DETERMINISTIC", True, "OUTPUT_DIR", tmp_path) == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
