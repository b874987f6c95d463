from datetime import timedelta

import pytest
import torch
from detectron2.engine import default_argument_parser

from sparsercnn.engine.launch import launch
from sparsercnn.errors import InputError


def complain(what):
    raise InputError(f"{what} is wrong:\n    in one respect")


@pytest.mark.skipif(torch.cuda.is_available(), reason="detectron2 gives each process a GPU where there are any")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_mistake_found_in_any_process_arrives_as_it_was_raised(processes):
    args = default_argument_parser().parse_args(["--num-gpus", processes])
    with pytest.raises(InputError) as raised:
        launch(complain, args, ("it",), timedelta(seconds=60))
    assert str(raised.value) == "it is wrong:\n    in one respect"
