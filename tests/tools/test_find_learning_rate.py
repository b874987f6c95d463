"""tools/find_learning_rate.py: a sweep of a tiny training."""

import pytest
from PIL import Image

from tests.tiny_run import QUICKSTART, TINY
from tools import find_learning_rate

pytestmark = pytest.mark.usefixtures("loggers")


def test_a_rate_between_the_first_and_the_last(tiny, tmp_path, capsys):
    picture = tmp_path / "rates.png"
    options = ["--from", "1e-5", "--to", "1", "--iterations", "20", "--output", str(picture)]
    assert find_learning_rate.main(["--config-file", QUICKSTART, *options, *TINY]) == 0
    key, value = capsys.readouterr().out.splitlines()[-2].split()
    assert key == "SOLVER.BASE_LR" and 1e-6 < float(value) < 1
    with Image.open(picture) as drawn:
        assert drawn.width > 100


def test_rates_grow_and_keep_the_share_of_the_backbone(tiny, tmp_path, monkeypatch):
    seen = []
    original = find_learning_rate.Trainer.__init__

    def watch(self, cfg):
        original(self, cfg)
        step = self._trainer.run_step
        self._trainer.run_step = lambda: (seen.append([g["lr"] for g in self.optimizer.param_groups]), step())

    monkeypatch.setattr(find_learning_rate.Trainer, "__init__", watch)
    options = ["--from", "1e-6", "--to", "1e-4", "--iterations", "3", "--output", str(tmp_path / "rates.png")]
    find_learning_rate.main(["--config-file", QUICKSTART, *options, *TINY, "SOLVER.BACKBONE_MULTIPLIER", "0.1"])
    for rates, expected in zip(seen, (1e-6, 1e-5, 1e-4), strict=True):
        assert sorted(rates) == [pytest.approx(0.1 * expected), pytest.approx(expected)]
