"""tools/benchmark_formats.py: formats of one detector beside each other, on pictures of a data set."""

import pytest

from tools import benchmark_formats
from tools.benchmark_formats import Format


def test_pytorch_plain_and_prepared_have_the_same_ap_and_a_row_each(trained, tmp_path, monkeypatch, capsys):
    checkpoint = trained / "model_final.pth"
    chosen = [Format("plain", checkpoint, ("TEST.PREPARE", False)), Format("prepared", checkpoint)]
    monkeypatch.setattr(benchmark_formats, "formats", lambda checkpoint, folder: chosen)
    monkeypatch.setattr(benchmark_formats, "start", lambda format, picture: (1.0, 100.0))
    (tmp_path / "out").mkdir()
    assert benchmark_formats.main([str(checkpoint), "--output", str(tmp_path / "out"), "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split("|") for line in printed.splitlines() if line.startswith(("| plain", "| prepared"))]
    assert [row[1].strip() for row in rows] == ["plain", "prepared"] and rows[0][2] == rows[1][2]
    assert all(float(row[3]) > 0 and float(row[6]) > 0.1 for row in rows)


def test_a_format_that_does_not_start_is_one_line(trained, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(benchmark_formats.InputError, match="ONNX does not start: ValueError: .*broken.onnx"):
        benchmark_formats.start(Format("ONNX", broken), "picture.png")


@pytest.mark.slow
def test_start_and_memory_of_a_process_of_its_own(trained, tiny):
    seconds, memory = benchmark_formats.start(Format("plain", trained / "model_final.pth"), str(tiny / "1.png"))
    assert seconds > 0 and memory > 50
