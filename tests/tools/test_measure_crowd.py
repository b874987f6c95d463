"""tools/measure_crowd.py: a row for each picture and way of looking."""

from sparsercnn.data.shapes import annotation_file, prepare_shapes
from tools import measure_crowd

TINY = """
MODEL.DEVICE cpu MODEL.NECK.OUT_CHANNELS 16 MODEL.SparseRCNN.HIDDEN_DIM 16 MODEL.SparseRCNN.NUM_HEADS 1
MODEL.SparseRCNN.NUM_PROPOSALS 8 MODEL.SparseRCNN.DIM_FEEDFORWARD 16 MODEL.SparseRCNN.DIM_DYNAMIC 8
MODEL.SparseRCNN.NHEADS 1 INPUT.MIN_SIZE_TEST 64
""".split()


def test_more_detections_in_each_way(tmp_path, capsys):
    prepare_shapes(tmp_path, {"train": 1, "val": 1}, 64, 0, "shapes")
    data = f'[["crowd", "{annotation_file(tmp_path, "val")}", "{tmp_path / "val"}"]]'
    data_options = ["DATASETS.COCO_JSON", data, "DATASETS.TEST", "('crowd',)"]
    arguments = ["--config-file", "configs/quickstart.yaml", "--threshold", "0", "--proposals", "30", "--tile", "40"]
    assert measure_crowd.main([*arguments, *TINY, *data_options]) == 0
    _, _, *rows = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[1] for row in cells] == ["8 proposals", "30 proposals", "tiles of 40"]
    seen = [int(row[2].split()[0]) + int(row[3]) for row in cells]
    assert seen[0] <= 8 < min(seen[1:]) and seen[1] <= 30 and seen[2] <= 4 * 8


def test_a_mistake_is_one_line(capsys):
    arguments = ["--config-file", "configs/quickstart.yaml", "--proposals", "-3", "DATASETS.TEST", "()"]
    assert measure_crowd.main(arguments) == 2
    assert "TEST.NUM_PROPOSALS is -3; it must be at least 0" in capsys.readouterr().err
