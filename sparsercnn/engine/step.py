"""One optimizer step: gradient accumulation and mixed precision, on the CPU as on a GPU."""

import contextlib
import time
from collections.abc import Iterable

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..architectures import loss_normalizer


class TrainStep(SimpleTrainer):
    """`SimpleTrainer` whose iteration may take several batches and run in lower precision.

    Accumulation is exact: losses are sums divided by a number (of objects for Sparse R-CNN, of images for Faster R-CNN;
    see `loss_normalizer`), averaged over processes and at least 1, so each batch is weighted by its share of it, and
    losses and gradients are those of one batch that holds all images. (Two things see the smaller batches all the same:
    batch norm in training mode, and the class loss of the softmax variant and of Faster R-CNN, which is an average over
    proposals.)

    Args:
        model: returns a dict of losses in training.
        data_loader: yields lists of dataset dicts with "instances".
        optimizer: steps once per iteration.
        accumulate: batches per iteration.
        precision: dtype of autocast, None for full precision. float16 scales the loss to keep small gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        accumulate: int = 1,
        precision: torch.dtype | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        self.accumulate = accumulate
        self.precision = precision
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=precision == torch.float16)

    def run_step(self) -> None:
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self.accumulate)]
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        for i, (batch, share) in enumerate(zip(batches, self._shares(batches), strict=True)):
            with self._gradients_stay_local(i + 1 < self.accumulate):
                for name, loss in self._forward_backward(batch, share).items():
                    losses[name] = losses.get(name, 0.0) + loss
        self.after_backward()
        # All losses in one transfer from the device, rather than one each.
        values = torch.stack(list(losses.values())).tolist()
        self._write_metrics({name: torch.tensor(v) for name, v in zip(losses, values, strict=True)}, data_time)
        # Gradient clipping, a hook of the optimizer, must see the true gradients.
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _forward_backward(self, batch: list[dict], share: float) -> dict[str, Tensor]:
        with torch.autocast(self.device_type, self.precision, enabled=self.precision is not None):
            losses = {name: share * loss for name, loss in self.model(batch).items()}
        self.grad_scaler.scale(sum(losses.values())).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _shares(self, batches: list[list[dict]]) -> list[float]:
        """Normalizer of each batch's losses relative to that of all batches together."""
        if len(batches) == 1:
            return [1.0]
        model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        counts = torch.tensor([float(loss_normalizer(model, batch)) for batch in batches])
        if comm.get_world_size() > 1:
            counts = counts.to(self.device_type)
            dist.all_reduce(counts)
            counts /= comm.get_world_size()
        return (counts.clamp(min=1) / counts.sum().clamp(min=1)).tolist()

    def _gradients_stay_local(self, stay: bool) -> contextlib.AbstractContextManager:
        """Processes need to exchange gradients only once per step, after the last batch."""
        if stay and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        # A checkpoint of a run in another precision has no scale to continue with.
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self._match_memory_layout()

    def _match_memory_layout(self) -> None:
        """Fused optimizers go through memory in order, so momenta saved in another layout would mix up silently."""
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)
