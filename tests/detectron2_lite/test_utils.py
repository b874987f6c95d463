"""Registry, logging, files, seeds and other helpers."""

import http.server
import importlib
import logging
import pickle
import re
import threading

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import TORCH_VERSION, seed_all_rng
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table, log_every_n, log_every_n_seconds, log_first_n, setup_logger
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper
from torch import nn


def test_registry():
    registry = Registry("THINGS")

    @registry.register()
    class Thing: ...

    assert registry.get("Thing") is Thing and "Thing" in registry
    with pytest.raises(KeyError, match="Nothing.*THINGS"):
        registry.get("Nothing")
    with pytest.raises(AssertionError, match="already registered"):
        registry.register(Thing)


def test_locate():
    assert locate("torch.nn.Linear") is nn.Linear
    assert locate("detectron2.structures.Boxes.cat").__name__ == "cat"
    # torch.optim deletes its attribute sgd, so that the module can be imported but not reached.
    assert locate("torch.optim.sgd.SGD") is torch.optim.SGD
    assert locate("torch.optim.sgd.SGD.step") is torch.optim.SGD.step


@pytest.mark.parametrize("name", ["torch.nn.Nothing", "torch.optim.sgd.Nothing", "no_such_package.thing", "nothing"])
def test_locate_nothing(name):
    with pytest.raises(ImportError, match=name):
        locate(name)


def test_seed_makes_all_generators_repeat():
    def draw():
        return torch.rand(1).item(), np.random.rand(), importlib.import_module("random").random()

    seed_all_rng(5)
    first = draw()
    assert draw() != first
    seed_all_rng(5)
    assert draw() == first
    assert TORCH_VERSION >= (2, 4)


def test_log_files_of_ranks(tmp_path, capsys):
    logger = setup_logger(str(tmp_path), name="detectron2_api_main", abbrev_name="api")
    assert setup_logger(str(tmp_path), name="detectron2_api_main", abbrev_name="api") is logger
    logging.getLogger("detectron2_api_main.part").warning("attention")
    other = setup_logger(str(tmp_path), distributed_rank=2, name="detectron2_api_other")
    other.info("quiet")
    terminal = capsys.readouterr().out
    assert terminal.count("attention") == 1 and "api.part" in terminal and "WARNING" in terminal
    assert "quiet" not in terminal
    assert re.search(r"^\[\d\d/\d\d \d\d:\d\d:\d\d\] api\.part WARNING: attention$", (tmp_path / "log.txt").read_text())
    assert "quiet" in (tmp_path / "log.txt.rank2").read_text()


def test_setup_logger_writes_the_named_file(tmp_path):
    path = tmp_path / "folder" / "mine.log"
    logger = setup_logger(str(path), color=False, name="detectron2_api_file")
    logger.info("hello")
    assert path.read_text().endswith("detectron2_api_file INFO: hello\n")


def test_messages_that_do_not_repeat(caplog):
    caplog.set_level(logging.INFO)
    for k in range(7):
        log_first_n(logging.INFO, f"first {k}", n=2, name="api_test")
        log_first_n(logging.INFO, f"message {k % 2}", name="api_test", key="message")
        log_every_n(logging.INFO, f"every {k}", n=3, name="api_test")
        log_every_n_seconds(logging.INFO, f"seconds {k}", n=1000, name="api_test")
    messages = [r.getMessage() for r in caplog.records if r.name == "api_test"]
    assert [m for m in messages if m.startswith("first")] == ["first 0", "first 1"]
    assert [m for m in messages if m.startswith("message")] == ["message 0", "message 1"]
    assert [m for m in messages if m.startswith("every")] == ["every 0", "every 3", "every 6"]
    assert [m for m in messages if m.startswith("seconds")] == ["seconds 0"]


def test_small_table():
    header, rule, row = create_small_table({"AP": 12.3456, "AP50": 45.0}).splitlines()
    assert header.split() == ["|", "AP", "|", "AP50", "|"]
    assert row.split() == ["|", "12.346", "|", "45.000", "|"]


def test_picklable_wrapper():
    factor = 3
    wrapped = PicklableWrapper(PicklableWrapper(lambda x: factor * x))
    assert pickle.loads(pickle.dumps(wrapped))(2) == 6


def test_retry_only_on_out_of_memory():
    calls = []

    @retry_if_cuda_oom
    def fails(x, errors):
        calls.append(x)
        if errors:
            raise RuntimeError(errors.pop())
        return x

    assert fails(1, ["CUDA out of memory. Tried to allocate"] * 2) == 1
    assert calls == [1, 1, 1]
    with pytest.raises(RuntimeError, match="another"):
        fails(1, ["another problem"])


def test_environment_report():
    report = collect_env_info()
    assert "detectron2" in report and torch.__version__ in report and "PyTorch" in report


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder served over HTTP, and an empty download cache."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}", requests
        httpd.shutdown()


def test_urls_are_downloaded_once(server):
    folder, url, requests = server
    (folder / "a.txt").write_text("hello")
    local = PathManager.get_local_path(f"{url}/a.txt")
    assert PathManager.get_local_path(f"{url}/a.txt") == local
    assert open(local).read() == PathManager.open(f"{url}/a.txt").read() == "hello"
    assert requests == ["/a.txt"]


def test_weights_from_a_url(server):
    folder, url, _ = server
    stored, loaded = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save({"model": stored.state_dict()}, folder / "model.pth")
    DetectionCheckpointer(loaded).load(f"{url}/model.pth")
    assert torch.equal(loaded.weight, stored.weight)
    weights = {f"fc.{name}": value for name, value in stored.state_dict().items()}
    torch.save(weights, folder / "fc.pth")
    wrapped = nn.ModuleDict({"backbone": nn.ModuleDict({"fc": nn.Linear(2, 3)})})
    DetectionCheckpointer(wrapped).load(f"{url}/fc.pth?matching_heuristics=True")
    assert torch.equal(wrapped["backbone"]["fc"].weight, stored.weight)


def test_model_zoo_prefix_leads_to_the_official_server(monkeypatch, tmp_path):
    asked = []
    (tmp_path / "file").write_text("x")
    original = PathManager.get_local_path

    def record(path, *args, **kwargs):
        if path.startswith("https://"):
            asked.append(path)
            return str(tmp_path / "file")
        return original(path, *args, **kwargs)

    monkeypatch.setattr(PathManager, "get_local_path", record)
    assert PathManager.get_local_path("detectron2://ImageNetPretrained/torchvision/R-50.pkl") == str(tmp_path / "file")
    assert asked == ["https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision/R-50.pkl"]
