"""The precision that `SOLVER.AMP` stands for on each kind of processor."""

import pytest
import torch

from sparsercnn import load_config
from sparsercnn.engine.build import amp_precision
from sparsercnn.fast import processor, training


def precision(*options):
    return amp_precision(load_config(None, ["MODEL.DEVICE", "cpu", *options]))


AUTO = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "auto")


@pytest.mark.parametrize(
    ("instruction_sets", "expected"),
    [({"avx2"}, None), ({"avx512_bf16"}, None), ({"avx512_bf16", "amx_bf16"}, torch.bfloat16)],
)
def test_auto_on_a_cpu(monkeypatch, instruction_sets, expected):
    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset(instruction_sets))
    assert precision(*AUTO) == expected


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_a_gpu(monkeypatch, has_bfloat16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bfloat16)
    assert training.fastest_precision("cuda") == expected


def test_a_named_precision():
    assert precision("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bfloat16") == torch.bfloat16
    assert precision("SOLVER.AMP.PRECISION", "bfloat16") is None
