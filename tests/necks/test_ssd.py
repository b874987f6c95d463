"""The SSD-style pyramid written out."""

import pytest
import torch

from necks import SSD

from . import plain


@pytest.mark.parametrize("sizes", plain.SIZES.values(), ids=plain.SIZES)
def test_formula(input_shapes, sizes):
    neck = plain.randomize(SSD(input_shapes, 8, num_levels=5))
    features = plain.random_features(input_shapes, sizes)
    expected = [plain.conv(layer, x) for layer, x in zip(neck.project, features.values(), strict=True)]
    for layer in neck.extra:
        expected.append(plain.conv(layer, expected[-1].clamp(min=0), stride=2))
    for result, e in zip(neck(features).values(), expected, strict=True):
        torch.testing.assert_close(result, e, rtol=1e-5, atol=1e-5)
