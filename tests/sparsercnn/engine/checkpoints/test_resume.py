"""What a run finds when it starts again, and what its saves leave on the disk."""

import os

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import launch
from detectron2.utils import comm
from torch import nn

from sparsercnn.engine import SparseRCNNCheckpointer
from sparsercnn.engine.checkpoints.checkpointer import resumable_checkpoints
from sparsercnn.errors import InputError
from sparsercnn.files import CannotWriteError


class Trainer:
    """A training's state without a training."""

    def __init__(self, folder, iteration=-1, **options):
        self.model = nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.iteration = iteration
        self.checkpointer = SparseRCNNCheckpointer(self.model, str(folder), trainer=self, **options)

    def train_and_save(self, *names):
        for name in names:
            self.iteration = int(name) if name.isdigit() else self.iteration + 1
            nn.init.constant_(self.model.weight, self.iteration)
            self.checkpointer.save(f"model_{int(name):07d}" if name.isdigit() else name, iteration=self.iteration)
        return self

    def resumed(self):
        """The iteration whose weights and state were loaded."""
        self.checkpointer.resume_or_load("", resume=True)
        assert torch.all(self.model.weight == self.iteration)
        return self.iteration

    def state_dict(self):
        return {"iteration": self.iteration, "_trainer": {"optimizer": self.optimizer.state_dict()}}

    def load_state_dict(self, state):
        self.iteration = state["iteration"]


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def files(folder, pattern="*.pth"):
    return sorted(path.name for path in folder.glob(pattern))


def test_the_last_whole_checkpoint_is_resumed_and_damaged_ones_are_named(tmp_path, caplog):
    Trainer(tmp_path).train_and_save("1", "3", "5")
    for name in ("model_0000005.pth", "model_0000003.pth"):
        damage(tmp_path / name)
    assert Trainer(tmp_path).resumed() == 1
    for name in ("model_0000005.pth", "model_0000003.pth"):
        assert sum(name in record.message and record.levelname == "WARNING" for record in caplog.records) == 1


def test_without_a_whole_checkpoint_each_is_named(tmp_path):
    Trainer(tmp_path).train_and_save("1", "3")
    damage(tmp_path / "model_0000001.pth")
    (tmp_path / "model_0000003.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"model_0000003.pth is damaged.*model_0000001.pth is damaged") as raised:
        Trainer(tmp_path).resumed()
    assert "\n" not in str(raised.value)


def test_weights_that_are_asked_for_have_no_substitute(tmp_path):
    Trainer(tmp_path).train_and_save("1", "3")
    damage(tmp_path / "model_0000003.pth")
    with pytest.raises(InputError, match=r"model_0000003.pth is damaged.*checksum"):
        SparseRCNNCheckpointer(nn.Linear(2, 2), str(tmp_path)).load(str(tmp_path / "model_0000003.pth"))


@pytest.mark.parametrize("tag", [None, b"", b"model_0000009.pth", b"../x.pth", b"\xff\xfe", b"a\0", b"x" * 10**6, b"."])
def test_a_tag_that_names_no_checkpoint(tmp_path, tag):
    (tmp_path / "run").mkdir()
    torch.save({"model": {}}, tmp_path / "x.pth")
    trainer = Trainer(tmp_path / "run").train_and_save("1", "12", "3")
    tag_file = tmp_path / "run" / "last_checkpoint"
    tag_file.unlink() if tag is None else tag_file.write_bytes(tag)
    assert trainer.checkpointer.has_checkpoint()
    assert trainer.checkpointer.get_checkpoint_file() == str(tmp_path / "run" / "model_0000012.pth")
    assert Trainer(tmp_path / "run").resumed() == 12


def test_the_tag_has_the_first_word(tmp_path):
    Trainer(tmp_path).train_and_save("3", "5", "1")
    assert Trainer(tmp_path).resumed() == 1


def test_a_final_checkpoint_is_as_new_as_what_was_written_before_it(tmp_path):
    trainer = Trainer(tmp_path).train_and_save("1", "model_final", "3")
    for age, name in enumerate(("model_0000003.pth", "model_final.pth", "model_0000001.pth")):
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "last_checkpoint").unlink()
    found = [os.path.basename(path) for path in resumable_checkpoints(str(tmp_path))]
    assert found == ["model_0000003.pth", "model_final.pth", "model_0000001.pth"]
    assert trainer.checkpointer.get_checkpoint_file().endswith("model_0000003.pth")


def test_without_checkpoints_the_weights_are_loaded(tmp_path):
    Trainer(tmp_path).train_and_save("4")
    (tmp_path / "empty").mkdir()
    other = Trainer(tmp_path / "empty")
    assert not other.checkpointer.has_checkpoint() and other.checkpointer.get_checkpoint_file() == ""
    other.checkpointer.resume_or_load(str(tmp_path / "model_0000004.pth"), resume=True)
    assert torch.all(other.model.weight == 4) and other.iteration == -1


def test_partial_files_of_a_killed_run_are_removed_when_it_starts_again(tmp_path):
    Trainer(tmp_path).train_and_save("1")
    (tmp_path / "model_0000003.pth.partial").write_bytes(b"half")
    SparseRCNNCheckpointer(nn.Linear(2, 2), str(tmp_path)).resume_or_load("", resume=True)  # an evaluation beside it
    assert files(tmp_path, "*.partial")
    assert Trainer(tmp_path).resumed() == 1
    assert not files(tmp_path, "*.partial")


def test_old_checkpoints_are_pruned_but_never_the_best_or_the_last(tmp_path):
    Trainer(tmp_path, kept=2).train_and_save("1", "model_best", "3", "5")
    assert files(tmp_path) == ["model_0000003.pth", "model_0000005.pth", "model_best.pth"]
    # Back at 4 after the one of 5 was damaged: that one is of no use, and not in the way.
    damage(tmp_path / "model_0000005.pth")
    trainer = Trainer(tmp_path, kept=2)
    assert trainer.resumed() == 3
    trainer.train_and_save("4")
    assert files(tmp_path, "model_0*") == ["model_0000003.pth", "model_0000004.pth", "model_0000005.pth"]
    trainer.train_and_save("5", "7", "model_final")
    assert files(tmp_path) == ["model_0000005.pth", "model_0000007.pth", "model_best.pth", "model_final.pth"]
    Trainer(tmp_path).train_and_save("9")
    assert len(files(tmp_path)) == 5


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    trainer = Trainer(tmp_path, kept=1).train_and_save("1")
    before = (tmp_path / "model_0000001.pth").read_bytes()

    def fill_up(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(
        CannotWriteError, match=r"model_0000003.pth: No space left.*model_0000001.pth is whole.*--resume"
    ):
        trainer.train_and_save("3")
    assert files(tmp_path, "*") == ["last_checkpoint", "model_0000001.pth"]
    assert (tmp_path / "model_0000001.pth").read_bytes() == before
    monkeypatch.undo()
    assert Trainer(tmp_path).resumed() == 1


def test_what_could_not_be_read_again_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="object"):
        Trainer(tmp_path).checkpointer.save("model", extra=object())
    assert not files(tmp_path, "*")


def test_metadata_is_stored_and_ignored_by_detectron2(tmp_path):
    metadata = {"config": "VERSION: 2\n", "class_names": ["cat"], "score_threshold": 0.5}
    trainer = Trainer(tmp_path, metadata=metadata).train_and_save("1")
    assert trainer.checkpointer.resume_or_load("")["metadata"] == metadata
    plain = nn.Linear(2, 2)
    DetectionCheckpointer(plain).load(str(tmp_path / "model_0000001.pth"))
    assert torch.all(plain.weight == 1)


@pytest.mark.parametrize(
    "change",
    [
        {"trainer": None},
        {"trainer": {"iteration": 1}},
        {"trainer": {"iteration": "1", "_trainer": {"optimizer": {"state": {}, "param_groups": []}}}},
    ],
)
def test_a_state_that_is_none_is_passed_over(tmp_path, change):
    Trainer(tmp_path).train_and_save("1", "3")
    path = tmp_path / "model_0000003.pth"
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    assert Trainer(tmp_path).resumed() == 1


def test_what_a_training_makes_of_its_state_is_one_line(tmp_path, monkeypatch):
    Trainer(tmp_path).train_and_save("1")
    monkeypatch.setattr(Trainer, "load_state_dict", lambda self, state: state["nothing"])
    with pytest.raises(
        InputError, match=r"model_0000001.pth does not fit the model or its training: KeyError: 'nothing'"
    ):
        Trainer(tmp_path).resumed()


def resume_in_each_process(folder):
    """All from one folder, then each from its own."""
    assert Trainer(folder / "shared").resumed() == 1
    with pytest.raises(InputError, match="the same checkpoint .* but model_0000001.pth, model_0000003.pth"):
        Trainer(folder / str(comm.get_rank())).resumed()
    with pytest.raises(InputError, match=("no checkpoint in", "but none, model_0000003.pth")[comm.get_rank()]):
        damage(folder / "0" / "model_0000001.pth") if comm.is_main_process() else None
        Trainer(folder / str(comm.get_rank())).resumed()


@pytest.mark.skipif(torch.cuda.is_available(), reason="detectron2 gives each process a GPU where there are any")
@pytest.mark.usefixtures("quick_processes")
def test_processes_resume_from_one_checkpoint(tmp_path):
    for folder, names in {"shared": ["1", "3"], "0": ["1"], "1": ["3"]}.items():
        (tmp_path / folder).mkdir()
        Trainer(tmp_path / folder).train_and_save(*names)
    damage(tmp_path / "shared" / "model_0000003.pth")
    launch(resume_in_each_process, 2, dist_url="auto", args=(tmp_path,))
