"""Every benchmark runs at a tiny size, writes its JSON, and checks that baseline and ours agree."""

import importlib
import json

import pytest
import torch

from benchmarks import baselines, harness, limits, report
from benchmarks.models import random_boxes, random_targets
from sparsercnn import HungarianMatcher, SetCriterion
from sparsercnn.fast.inference import Parts
from sparsercnn.modeling.roi_routing import FusedPooler

FIELDS = {"case", "baseline", "baseline_ms", "ours_ms", "ratio", "spread"}
SMALL_MODEL = (
    "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.FPN.OUT_CHANNELS 16 "
    "MODEL.SparseRCNN.HIDDEN_DIM 16 MODEL.SparseRCNN.NUM_PROPOSALS 6 MODEL.SparseRCNN.NUM_HEADS 2 "
    "MODEL.SparseRCNN.DIM_FEEDFORWARD 32 MODEL.SparseRCNN.DIM_DYNAMIC 4 MODEL.SparseRCNN.NUM_CLASSES 5"
)
RUNS = {
    "pooler": "--size 64 96 --boxes 12 --channels 8 --stages 2 --batch 2 --profile",
    "matcher": "--size 64 96 --stages 2 --batch 3 --proposals 9 --objects 4 --classes 5 --profile",
    "inference": f"--size 64 96 --mode eager --precision fp32 --profile {SMALL_MODEL}",
    "dense": f"--size 64 96 --precision fp32 --profile {SMALL_MODEL}",
    "train_step": f"--size 64 96 --objects 3 --no-memory --profile {SMALL_MODEL}",
    "dataloader": "--jpeg-size 96 128 --images 8 --batches 1 --profile INPUT.MIN_SIZE_TRAIN (64,)",
    "evaluation": "--images 10 --detections 8 --objects 4 --classes 3 --profile",
    "necks": f"--necks fpn panet --size 64 64 {SMALL_MODEL} MODEL.NECK.OUT_CHANNELS 16",
}


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch):
    """Rates of a machine are not measured in tests: it takes seconds."""
    rates = limits.Rates(matmul=1e11, conv=1e11, copy=1e10)
    monkeypatch.setattr("benchmarks.limits.measure_rates", lambda *_: rates)
    monkeypatch.setattr("benchmarks.pooler.measure_rates", lambda *_: rates)


@pytest.mark.parametrize("name", RUNS)
def test_runs_and_writes_rows(name, tmp_path, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    path = tmp_path / f"{name}.json"
    module.main(["--repeats", "2", "--json", str(path), *RUNS[name].split()])
    rows = json.loads(path.read_text())
    assert rows
    for row in rows:
        assert row.keys() == FIELDS
        assert min(row["baseline_ms"], row["ours_ms"], row["ratio"]) > 0 and row["spread"] >= 0
    printed = capsys.readouterr().out
    assert harness.table(rows) in printed
    assert torch.__version__ in printed
    section = report.report([path])
    assert f"## {name}" in section and harness.table(rows) in section


def test_ablation_has_a_row_for_each_part(tmp_path):
    path = tmp_path / "ablation.json"
    options = f"--ablate --size 64 96 --precision fp32 --repeats 1 --json {path} {SMALL_MODEL}"
    importlib.import_module("benchmarks.inference").main(options.split())
    baselines = [row["baseline"] for row in json.loads(path.read_text())]
    assert baselines == [f"without {part}" for part in Parts.__dataclass_fields__]


def test_ratio_is_the_median_of_the_rounds():
    comparison = harness.Comparison("case", "baseline", [10.0, 20.0, 90.0], [5.0, 5.0, 9.0])
    assert comparison.row() == {
        "case": "case",
        "baseline": "baseline",
        "baseline_ms": 20.0,
        "ours_ms": 5.0,
        "ratio": 4.0,
        "spread": 4.0,  # quartiles of 2, 4, 10 are 3 and 7
    }


def test_rounds_alternate_in_order():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = harness.measure(functions, repeats=3, device="cpu", warmup=1)
    # Each time twice: the first call does not count.
    assert "".join(calls) == "ccbbaa" + "aabbcc" + "ccbbaa" + "aabbcc"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_per_stage_baseline_has_our_pairs_losses_and_gradients():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 10, 4, generator=generator).requires_grad_()
    boxes = random_boxes(60, 100, 150, generator).view(3, 2, 10, 4).requires_grad_()
    targets = random_targets(2, 5, 100, 150, 4, generator)
    ours = SetCriterion(num_classes=4, matcher=HungarianMatcher())
    plain = baselines.PerStageCriterion(ours)
    for stage, images in enumerate(ours.matcher(logits, boxes, targets)):
        for pairs, expected in zip(images, plain.match(logits[stage], boxes[stage], targets), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(pairs, expected, strict=True))
    found = {}
    for criterion in (ours, plain):
        losses = criterion(logits, boxes, targets)
        found[criterion] = (losses, torch.autograd.grad(sum(losses.values()), (logits, boxes)))
    torch.testing.assert_close(found[ours], found[plain], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["pooler", "matcher"])
def test_a_difference_from_the_baseline_is_an_error(name, monkeypatch):
    if name == "pooler":
        pool = FusedPooler.pool
        monkeypatch.setattr(FusedPooler, "pool", lambda *args: pool(*args) * 1.01)
    else:
        monkeypatch.setattr(baselines.PerStageCriterion, "_losses", lambda *_: {"loss_ce": torch.tensor(1.0)})
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(AssertionError):
        module.main(["--repeats", "1", *RUNS[name].split()])


def test_rounds_are_at_least_one(capsys):
    with pytest.raises(SystemExit):
        harness.argument_parser("", repeats=3).parse_args(["--repeats", "0"])
    assert "'0' is not a number of at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_other_runtimes_have_rows(tmp_path):
    for library in ("onnxruntime", "onnxscript", "openvino", "nncf"):
        pytest.importorskip(library)
    path = tmp_path / "runtimes.json"
    options = f"--runtimes --size 60 96 --precision fp32 --repeats 1 --json {path} {SMALL_MODEL}"
    importlib.import_module("benchmarks.inference").main(options.split())
    cases = [row["case"].partition(",")[0] for row in json.loads(path.read_text())]
    assert cases == ["fp32 eager", "onnxruntime fp32", "OpenVINO fp32", "OpenVINO bf16", "OpenVINO int8"]
