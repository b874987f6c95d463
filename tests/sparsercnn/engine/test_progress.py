"""The progress line is short and says what one waits for."""

import logging
import re

from detectron2.utils.events import EventStorage

from sparsercnn.engine.progress import ProgressLine

LOSSES = {"loss_ce": 1.0, "loss_bbox": 2.0, "loss_giou": 3.0}
OF_OTHERS = {f"{name}{suffix}": 9.0 for name in LOSSES for suffix in ("_0", "_4", "_lateral", "_0_lateral")}


def lines(caplog, scalars, iterations, max_iter=100):
    caplog.set_level(logging.INFO, "detectron2.utils.events")
    writer = ProgressLine(max_iter, window_size=3)
    with EventStorage() as storage:
        for i in range(iterations):
            storage.put_scalars(**{name: value + i for name, value in scalars.items()})
            storage.put_scalar("lr", 2.5e-5, smoothing_hint=False)
            if i > 1:
                storage.put_scalar("time", 0.5)
                storage.put_scalar("data_time", 0.1)
            writer.write()
            storage.step()
        writer.write()
    return [record.getMessage() for record in caplog.records], storage


def test_the_line_has_time_left_iteration_losses_of_the_last_stage_rate_and_memory(caplog):
    written, storage = lines(caplog, {**OF_OTHERS, **LOSSES, "total_loss": 60.0}, iterations=4)
    # Losses are medians of the last three iterations; half a second for each of 96 iterations is left.
    expected = (
        "eta: 0:00:48  iter: 3  total_loss: 62  loss_ce: 3  loss_bbox: 4  loss_giou: 5  lr: 2.5e-05  max_mem: [0-9]+M"
    )
    assert re.fullmatch(expected, written[3])
    assert storage.history("eta_seconds").values()[1] == (48, 3)
    assert all(len(line) < 120 for line in written)


def test_before_iterations_are_timed_there_is_no_time_left(caplog):
    written, _ = lines(caplog, {"total_loss": 1.0}, iterations=1)
    assert written[0].startswith("iter: 0  total_loss: 1  lr: 2.5e-05  max_mem: ")


def test_losses_of_another_detector_are_all_shown(caplog):
    names = ["loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"]
    written, _ = lines(caplog, dict.fromkeys(names, 1.0), iterations=1)
    assert all(f"{name}: 1" in written[0] for name in names)


def test_after_the_last_iteration_nothing_is_left_to_report(caplog):
    written, _ = lines(caplog, {"total_loss": 1.0}, iterations=2, max_iter=2)
    assert len(written) == 2
