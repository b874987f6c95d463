"""Averaged weights: what they are, who gets them, and that a training goes on with its own."""

import torch
from torch import nn
from torch.testing import assert_close

from sparsercnn.engine import SparseRCNNCheckpointer
from sparsercnn.engine.ema import CHECKPOINT_KEY, ExponentialMovingAverage


def model_at(value):
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(model[0].weight, value)
    return model


def test_average_of_weights_statistics_and_counters():
    model = model_at(0.0)
    ema = ExponentialMovingAverage(model, decay=0.15)
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(model[0].weight, value)
        model[1].running_mean.fill_(value)
        model[1].num_batches_tracked += 1
        ema.after_step()
    average = ema.average.module
    # 1; then (1 + 1) / (10 + 1) is more than 0.15, and so is 3 / 12.
    expected = 0.15 * (0.15 * 1 + 0.85 * 2) + 0.85 * 4
    assert_close(average[0].weight.item(), expected)
    assert_close(average[1].running_mean.item(), expected)
    assert average[1].num_batches_tracked == 3
    assert model[0].weight.item() == 4


def test_a_long_average_starts_short():
    model = model_at(1.0)
    ema = ExponentialMovingAverage(model, decay=0.999)
    ema.after_step()
    nn.init.constant_(model[0].weight, 2.0)
    ema.after_step()
    assert_close(ema.average.module[0].weight.item(), 1 * 2 / 11 + 2 * 9 / 11)


def averaged(model, folder):
    """A checkpointer that knows of the average, and the hook that averages."""
    ema, checkpointer = ExponentialMovingAverage(model, 0.5), SparseRCNNCheckpointer(model, str(folder))
    checkpointer.add_checkpointable(CHECKPOINT_KEY, ema.average)
    return checkpointer, ema


def test_who_loads_the_average_and_who_the_weights(tmp_path):
    model = model_at(1.0)
    checkpointer, ema = averaged(model, tmp_path)
    ema.after_step()
    nn.init.constant_(model[0].weight, 2.0)
    ema.after_step()
    checkpointer.save("model")
    average = ema.average.module[0].weight.item()
    assert 1 < average < 2

    user = model_at(0.0)
    SparseRCNNCheckpointer(user).load(str(tmp_path / "model.pth"))
    assert user[0].weight.item() == average

    resumed = model_at(0.0)
    checkpointer, other = averaged(resumed, tmp_path)
    checkpointer.resume_or_load("", resume=True)
    assert resumed[0].weight.item() == 2
    for step in (ema, other):
        step.after_step()
    assert torch.equal(other.average.module[0].weight, ema.average.module[0].weight)
    assert other.average.n_averaged == ema.average.n_averaged
