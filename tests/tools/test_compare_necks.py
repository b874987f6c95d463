import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from sparsercnn.evaluation.costs import measure_costs, measure_memory
from tools import compare_necks

ROOT = Path(__file__).parents[2]


NECKS = [str(ROOT / "configs" / "necks" / f"{name}.yaml") for name in ("fpn", "augfpn")]
TINY = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
TINY += [
    "MODEL.SparseRCNN.HIDDEN_DIM",
    "16",
    "MODEL.SparseRCNN.DIM_FEEDFORWARD",
    "16",
    "MODEL.SparseRCNN.NUM_HEADS",
    "2",
]
TINY += ["MODEL.SparseRCNN.NUM_PROPOSALS", "5", "MODEL.SparseRCNN.DIM_DYNAMIC", "4"]
COST_ONLY = ["MODEL.NECK.OUT_CHANNELS", "16"]


@pytest.fixture
def train_config(tmp_path):
    """A config that trains on four images of colored rectangles, registered as `rectangles`."""
    random = np.random.default_rng(0)
    annotations = []
    for i in range(4):
        pixels = random.integers(0, 100, (64, 64, 3), dtype=np.uint8)
        x, y, size = 8 + 4 * i, 20, 24 + 4 * i
        pixels[y : y + size, x : x + size] = 255
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        annotations.append(
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [x, y, size, size], "area": size**2, "iscrowd": 0}
        )
    images = [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in range(4)]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "rectangle"}]}
    (tmp_path / "rectangles.json").write_text(json.dumps(document))
    register_coco_instances("rectangles", {}, str(tmp_path / "rectangles.json"), str(tmp_path))
    config = tmp_path / "train.yaml"
    config.write_text(
        f"""
_BASE_: "{ROOT}/configs/quickstart.yaml"
MODEL:
  DEVICE: "cpu"
  SparseRCNN:
    NUM_CLASSES: 1
DATASETS:
  TRAIN: ("rectangles",)
  TEST: ("rectangles",)
SOLVER:
  IMS_PER_BATCH: 2
INPUT:
  MIN_SIZE_TRAIN: (64,)
  MIN_SIZE_TEST: 64
DATALOADER:
  NUM_WORKERS: 0
"""
    )
    yield config
    DatasetCatalog.remove("rectangles")
    MetadataCatalog.remove("rectangles")


def run(*arguments: object) -> int:
    return compare_necks.main([str(argument) for argument in arguments])


def test_costs_are_printed_and_saved(tmp_path, capsys):
    output = tmp_path / "out"
    assert run(*NECKS, "--size", 64, 96, "--rounds", 2, "--output", output, *TINY, *COST_ONLY) == 0
    rows = json.loads((output / "necks.json").read_text())["necks"]
    assert list(rows) == ["fpn", "augfpn"]
    for row in rows.values():
        assert sum(row["gmacs"][part] for part in compare_necks.PARTS) == pytest.approx(row["gmacs"]["total"])
        assert row["latency_ms"]["cpu"]["median"] > 0 and row["memory_mib"]["cpu"] > 0
    fpn, augfpn = rows.values()
    assert fpn["gmacs"]["bottom-up"] == augfpn["gmacs"]["bottom-up"]
    assert fpn["parameters"]["neck"] < augfpn["parameters"]["neck"]
    table = (output / "necks.md").read_text()
    assert table in capsys.readouterr().out
    assert "| fpn | " in table and "64×96" in table and "AP" not in table.replace("OUT_", "")
    assert Image.open(output / "necks.png").size[0] > 100


def test_counts_equal_those_of_the_layers(tmp_path):
    cfg = compare_necks.detector_config(Path(NECKS[0]), None, [*TINY, *COST_ONLY, "MODEL.NECK.IN_FEATURES", "['res5']"])
    cfg.merge_from_list(["MODEL.ROI_HEADS.IN_FEATURES", "['p5']"])
    costs = measure_costs({"fpn": cfg}, (64, 64), rounds=1)["fpn"]
    lateral, output = 512 * 16, 9 * 16 * 16
    assert costs["parameters"]["neck"] == pytest.approx((lateral + output + 2 * 16) / 1e6)
    assert costs["gmacs"]["neck"] == pytest.approx(2 * 2 * (lateral + output) / 1e9)


def test_memory_counts_what_lives_at_the_same_time():
    class Detector(torch.nn.Linear):
        def forward(self, inputs):
            one = torch.ones(2**18)  # 1 MiB
            two = torch.ones(2**19)
            del one, two
            return torch.ones(2**18)

    assert measure_memory(Detector(1, 1), torch.zeros(3, 1, 1)) == pytest.approx(3, abs=0.01)


def test_trains_every_neck_with_every_seed_and_keeps_finished_runs(tmp_path, train_config, capsys, monkeypatch):
    command = [*NECKS, "--size", 64, 64, "--rounds", 1, "--train", train_config, "--iterations", 2, "--seeds", 2]
    command += ["--output", tmp_path / "out", *TINY]
    assert run(*command) == 0
    first = json.loads((tmp_path / "out" / "necks.json").read_text())["necks"]
    for row in first.values():
        assert len(row["metrics"]["AP"]["values"]) == 2
        assert row["metrics"]["APl"] == {"mean": None, "std": None, "values": []}  # no rectangle is that large
    assert "| AP | AP_s | AP_m | AP_l |" in capsys.readouterr().out
    assert not list((tmp_path / "out").rglob("*.pth"))

    def train_again(cfg):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(compare_necks, "Trainer", train_again)
    assert run(*command) == 0
    again = json.loads((tmp_path / "out" / "necks.json").read_text())["necks"]
    assert {name: row["metrics"] for name, row in again.items()} == {
        name: row["metrics"] for name, row in first.items()
    }

    assert run(*command, "SOLVER.BASE_LR", "0.001") == 2
    assert "fpn/seed1 holds a run with other settings" in capsys.readouterr().err


class Bar:
    """Counts like a progress bar; interrupts when it reaches `stop_at`."""

    def __init__(self, stop_at: int | None = None):
        self.seen, self.stop_at = [], stop_at

    def update(self, n: int = 1) -> None:
        self.seen.append(n)
        if sum(self.seen) == self.stop_at:
            raise KeyboardInterrupt


def test_an_interrupted_run_resumes_from_its_checkpoint(tmp_path, train_config):
    configs = {"fpn": compare_necks.detector_config(Path(NECKS[0]), train_config, TINY)}
    [(_, cfg)] = compare_necks.runs_of(configs, seeds=1, iterations=4, output=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        compare_necks.train(cfg, Bar(stop_at=3))
    assert not (Path(cfg.OUTPUT_DIR) / "result.json").exists()
    bar = Bar()
    result = compare_necks.train(cfg, bar)
    assert bar.seen[0] >= 2 and sum(bar.seen) == 4
    assert json.loads((Path(cfg.OUTPUT_DIR) / "result.json").read_text()) == result


def test_the_neck_comes_from_one_config_and_the_rest_from_the_other(train_config):
    nasfpn = ROOT / "configs" / "necks" / "nasfpn.yaml"
    cfg = compare_necks.detector_config(nasfpn, train_config, ["MODEL.NECK.NORM", "BN"])
    assert cfg.MODEL.BACKBONE.NAME == "build_neck_backbone" and cfg.MODEL.NECK.NAME == "NASFPN"
    assert cfg.MODEL.ROI_HEADS.IN_FEATURES == ["p3", "p4", "p5", "p6", "p7"]
    assert cfg.MODEL.NECK.OUT_CHANNELS == cfg.MODEL.SparseRCNN.HIDDEN_DIM
    assert cfg.MODEL.RESNETS.DEPTH == 18 and cfg.DATASETS.TRAIN == ("rectangles",)
    assert cfg.MODEL.NECK.NORM == "BN"


def test_weights_of_a_resnet_are_not_offered_to_another_network(train_config):
    cfg = compare_necks.detector_config(ROOT / "configs" / "necks" / "pvt_v2_b2.fpn.yaml", train_config, [])
    assert cfg.MODEL.WEIGHTS == "" and cfg.MODEL.BACKBONE.FREEZE_AT == 0


def test_runs_share_seeds_and_keep_the_shape_of_the_schedule(tmp_path, train_config):
    configs = {Path(path).stem: compare_necks.detector_config(Path(path), train_config, TINY) for path in NECKS}
    runs = list(compare_necks.runs_of(configs, seeds=2, iterations=40, output=tmp_path))
    assert [(name, cfg.SEED) for name, cfg in runs] == [("fpn", 1), ("augfpn", 1), ("fpn", 2), ("augfpn", 2)]
    for _, cfg in runs:  # quickstart.yaml warms up for a tenth of its iterations
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD) == (40, 4, 10)
    assert len({cfg.OUTPUT_DIR for _, cfg in runs}) == 4


def test_summary_has_the_sample_deviation_and_leaves_out_missing_metrics():
    runs = [{"AP": 10.0, "APs": None, "APm": 1.0, "APl": 3.0}, {"AP": 14.0, "APs": None, "APm": None, "APl": 3.0}]
    summary = compare_necks.summarize(runs)
    assert summary["AP"]["mean"] == 12 and summary["AP"]["std"] == pytest.approx(8**0.5)
    assert summary["APs"]["mean"] is None
    assert summary["APm"] == {"mean": 1.0, "std": None, "values": [1.0]}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([NECKS[0], NECKS[0]], "same file name"),
        ([NECKS[0], "MODEL.NECK.NOM", "BN"], "MODEL.NECK.NOM"),
        ([NECKS[0], "MODEL.NECK.NAME", "FNP"], "MODEL.NECK.NAME is 'FNP'"),
        (["nosuch.yaml"], "nosuch.yaml does not exist"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    assert run(*arguments, "--output", tmp_path) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0]
