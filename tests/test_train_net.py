"""train_net.py from end to end on a few small pictures, and what it says about mistakes."""

import copy
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

import train_net
from sparsercnn import load_config
from sparsercnn.engine import TrainStep, build_model
from sparsercnn.errors import InputError
from tools.contact_sheet import contact_sheet
from tools.plot_training import plot_training

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
TINY = """
MODEL.DEVICE cpu MODEL.NECK.OUT_CHANNELS 16 MODEL.SparseRCNN.HIDDEN_DIM 16 MODEL.SparseRCNN.NUM_HEADS 2
MODEL.SparseRCNN.NUM_PROPOSALS 8 MODEL.SparseRCNN.DIM_FEEDFORWARD 16 MODEL.SparseRCNN.DIM_DYNAMIC 8
MODEL.SparseRCNN.PROPOSALS image
SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 1 DATALOADER.NUM_WORKERS 0 DATASETS.TRAIN ('tiny',) DATASETS.TEST ('tiny',)
INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
""".split()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A registered data set of four pictures with one rectangle each."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(1, 5):
        pixels = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        x, y, w, h = 4 * i, 40 - 4 * i, 12 + 4 * i, 20
        pixels[y : y + h, x : x + w] = 80 * (i % 3) + 60
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
        box = {"id": i, "image_id": i, "category_id": i % 3 + 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
        annotations.append(box)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(("circle", "square", "triangle"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    register_coco_instances("tiny", {}, str(folder / "annotations.json"), str(folder))
    yield folder
    DatasetCatalog.remove("tiny")
    MetadataCatalog.remove("tiny")


@pytest.fixture(autouse=True)
def loggers():
    """`default_setup` takes the logs over; give them back to pytest."""
    yield
    for name in ("detectron2", "fvcore", "sparsercnn"):
        logging.getLogger(name).propagate = True
        logging.getLogger(name).handlers.clear()


def run(*options, flags=()):
    return train_net.main(["--config-file", QUICKSTART, *flags, *TINY, *map(str, options)])


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    assert run("SOLVER.MAX_ITER", 3, "OUTPUT_DIR", output) == 0
    return output


def read_results(output):
    return json.loads((output / "inference" / "tiny" / "metrics.json").read_text())


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
    assert metadata["versions"]["torch"] == torch.__version__ and metadata["score_threshold"] is None
    (trained / "again.yaml").write_text(metadata["config"])
    assert yaml.safe_load(load_config(trained / "again.yaml").dump()) == yaml.safe_load(metadata["config"])


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


def test_evaluation_with_test_time_augmentation(trained, tmp_path):
    augmentation = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48,64)", "TEST.AUG.MAX_SIZE", 96]
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path]
    assert run(*weights, *augmentation, flags=["--eval-only"]) == 0
    assert read_results(tmp_path).keys() == {"bbox", "bbox_TTA"}
    assert read_results(tmp_path)["bbox"] == read_results(trained)["bbox"]


def test_resuming_continues_after_the_last_iteration(tiny, tmp_path):
    assert run("SOLVER.MAX_ITER", 2, "OUTPUT_DIR", tmp_path) == 0
    assert run("SOLVER.MAX_ITER", 4, "OUTPUT_DIR", tmp_path, flags=["--resume"]) == 0
    trainer = torch.load(tmp_path / "model_final.pth", weights_only=True)["trainer"]
    assert trainer["iteration"] == 3
    steps = [state["step"].item() for state in trainer["_trainer"]["optimizer"]["state"].values()]
    assert set(steps) == {4}


def resume(checkpoint, folder):
    """Weights after two more iterations."""
    folder.mkdir()
    torch.save(checkpoint, folder / "model_0000002.pth")
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    assert run("SOLVER.MAX_ITER", 5, "SEED", 7, "OUTPUT_DIR", folder, flags=["--resume"]) == 0
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def as_published(checkpoint):
    """With an optimizer group for each parameter, and the learned proposals before the head."""
    checkpoint = copy.deepcopy(checkpoint)
    model = build_model(load_config(QUICKSTART, TINY))
    ours = [name for name, p in model.named_parameters() if p.requires_grad]
    checkpoint["model"] = dict(sorted(checkpoint["model"].items(), key=lambda item: item[0].startswith("head.")))
    published = [name for name in checkpoint["model"] if name in ours]
    assert published != ours
    optimizer = checkpoint["trainer"]["_trainer"]["optimizer"]
    (group,) = optimizer["param_groups"]
    optimizer["state"] = {i: optimizer["state"][ours.index(name)] for i, name in enumerate(published)}
    optimizer["param_groups"] = [{**group, "params": [i]} for i in range(len(published))]
    checkpoint["trainer"]["hooks"]["LRScheduler"]["base_lrs"] *= len(published)
    return checkpoint


def test_a_published_checkpoint_resumes_as_ours_does(trained, tmp_path):
    checkpoint = torch.load(trained / "model_final.pth", weights_only=True)
    published = as_published(checkpoint)
    earlier = {key: value for key, value in published.items() if key != "trainer"}
    earlier["optimizer"] = published["trainer"]["_trainer"]["optimizer"]
    earlier["scheduler"] = published["trainer"]["hooks"]["LRScheduler"]
    expected = resume(checkpoint, tmp_path / "ours")
    assert not torch.equal(expected["init_proposal_boxes.weight"], checkpoint["model"]["init_proposal_boxes.weight"])
    for name, state in {"published": published, "earlier": earlier}.items():
        torch.testing.assert_close(resume(state, tmp_path / name), expected)


def test_weights_alone_are_not_resumed(trained, tmp_path, capsys):
    torch.save({"model": torch.load(trained / "model_final.pth", weights_only=True)["model"]}, tmp_path / "weights.pth")
    (tmp_path / "last_checkpoint").write_text("weights.pth")
    message = error_of(capsys, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 5, flags=["--resume"])
    assert "weights.pth" in message and "no state of a training" in message


def test_an_interrupt_saves_and_says_how_to_continue(tiny, tmp_path, capsys, monkeypatch):
    whole_step = TrainStep.run_step

    def interrupted_step(self):
        whole_step(self)
        if self.iter == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainStep, "run_step", interrupted_step)
    assert run("SOLVER.MAX_ITER", 50, "OUTPUT_DIR", tmp_path) == 130
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def error_of(capsys, *options, flags=()):
    assert run(*options, flags=flags) == 2
    message = capsys.readouterr().err
    errors = [line for line in message.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in message
    return errors[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["SOLVER.MAX_ITERS", 3], ["SOLVER.MAX_ITERS", "SOLVER.MAX_ITER?"]),
        (["SOLVER.MAX_ITER", "soon"], ["SOLVER.MAX_ITER", "int", "soon"]),
        (["MODEL.WEIGHTS", "gone.pth"], ["MODEL.WEIGHTS", "gone.pth"]),
        (["MODEL.BACKBONE.NAME", "build_resnet"], ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]),
        (["MODEL.ROI_HEADS.IN_FEATURES", "['p2','p9']"], ["MODEL.ROI_HEADS.IN_FEATURES", "p9", "p4"]),
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
    whole_step = TrainStep.run_step

    def step(self):
        if self.iter == 2:
            raise InputError("cannot read image broken.png: truncated")
        whole_step(self)

    monkeypatch.setattr(TrainStep, "run_step", step)
    assert "broken.png" in error_of(capsys, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 4)
    assert torch.load(tmp_path / "model_0000001.pth", weights_only=True)["iteration"] == 1
    monkeypatch.undo()
    assert run("OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 4, flags=["--resume"]) == 0
    trainer = torch.load(tmp_path / "model_final.pth", weights_only=True)["trainer"]
    steps = [state["step"].item() for state in trainer["_trainer"]["optimizer"]["state"].values()]
    assert set(steps) == {4}


def test_resume_without_a_checkpoint_starts_from_the_beginning(tiny, tmp_path):
    assert run("SOLVER.MAX_ITER", 2, "OUTPUT_DIR", tmp_path, flags=["--resume"]) == 0
    assert (tmp_path / "model_final.pth").is_file()


def test_evaluation_of_a_run_without_a_checkpoint(tiny, tmp_path, capsys):
    assert str(tmp_path) in error_of(capsys, "OUTPUT_DIR", tmp_path, flags=["--eval-only", "--resume"])


def test_checkpoint_of_another_architecture(trained, tmp_path, capsys):
    options = ["MODEL.WEIGHTS", trained / "model_final.pth", "MODEL.SparseRCNN.DIM_DYNAMIC", 4, "OUTPUT_DIR", tmp_path]
    assert "another architecture" in error_of(capsys, *options)


def test_the_program_itself_ends_with_status_2_and_one_line():
    command = [sys.executable, ROOT / "train_net.py", "--config-file", "nowhere.yaml"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1] == "error: config file nowhere.yaml does not exist"
    assert "Traceback" not in result.stderr
