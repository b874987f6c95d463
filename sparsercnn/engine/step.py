"""One optimizer step: gradient accumulation and mixed precision, on the CPU as on a GPU."""

import contextlib
import math
import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..architectures import loss_normalizer
from ..data.training import ReplacedImages, take_replaced
from ..errors import InputError
from ..randomness import Purpose, seed_generators
from .distributed.agreement import first_error, numbers_of_all
from .interrupt import StopSignals
from .not_finite import GradientNotFiniteError, NotFiniteError

# Scaled by less, float16 gradients that are still infinite will never be finite. The scale starts at 65536 and is
# halved at every overflow.
SMALLEST_LOSS_SCALE = 1e-4


class UnusableImageError(InputError):
    """An image of a batch cannot be used, in one of the processes; all raise this, before they have done anything."""


class TrainStep(SimpleTrainer):
    """`SimpleTrainer` whose iteration may take several batches and run in lower precision.

    Accumulation is exact: losses are sums divided by a number (of objects for Sparse R-CNN, of images for Faster R-CNN;
    see `loss_normalizer`), averaged over processes and at least 1, so each batch is weighted by its share of it, and
    losses and gradients are those of one batch that holds all images. (Two things see the smaller batches all the same:
    batch norm in training mode, and the class loss of the softmax variant and of Faster R-CNN, which is an average over
    proposals.)

    The random numbers that the model draws, for dropout and the like, follow from the seed, the iteration, the batch
    and the process. Processes agree on what ends a training: an error of one is an error of all.

    Args:
        model: returns a dict of losses in training.
        data_loader: yields lists of dataset dicts with "instances".
        optimizer: steps once per iteration. It may refuse to with `GradientNotFiniteError`.
        accumulate: batches per iteration.
        precision: dtype of autocast, None for full precision. float16 scales the loss to keep small gradients.
        signals: where signals that ask to stop are noted, if any is to be heeded.

    Attributes:
        seed: of the run.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        accumulate: int = 1,
        precision: torch.dtype | None = None,
        signals: StopSignals | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        self.accumulate = accumulate
        self.precision = precision
        self.signals = signals or StopSignals()
        self.seed = 0
        self.replaced_images = ReplacedImages()
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=precision == torch.float16)

    def run_step(self) -> None:
        """Take one step.

        Raises:
            UnusableImageError: an image cannot be used, in this or another process. Nothing has changed.
            NotFiniteError: a loss or a gradient is infinite or not a number, in this or another process. Nothing has
                changed but for the running statistics of norms.
        """
        start = time.perf_counter()
        batches = self._fetch_batches()
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        losses = self._accumulate_gradients(batches)
        self.after_backward()
        replaced = take_replaced([sample for batch in batches for sample in batch])
        values = self._exchange(losses, data_time, replaced)
        if bad := [name for name, value in values.items() if not math.isfinite(value)]:
            raise NotFiniteError(f"{', '.join(bad)} {'is' if len(bad) == 1 else 'are'}", values, batches)
        get_event_storage().put_scalar("total_loss", sum(values.values()), cur_iter=self.iter)
        for name, value in values.items() if len(values) > 1 else ():
            get_event_storage().put_scalar(name, value, cur_iter=self.iter)
        self._update(values, batches)

    def _accumulate_gradients(self, batches: list[list[dict]]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        try:
            for turn, (batch, share) in enumerate(zip(batches, self.shares(batches), strict=True)):
                seed_generators(self.seed, Purpose.MODEL, self.iter, turn, comm.get_rank())
                with self._gradients_stay_local(turn + 1 < self.accumulate):
                    for name, loss in self.forward_backward(batch, share).items():
                        losses[name] = losses.get(name, 0.0) + loss
        except FloatingPointError as error:  # the model found it before it had losses
            if comm.get_world_size() > 1:  # the others may be waiting elsewhere, so that this is for the run to end
                raise FloatingPointError(f"iteration {self.iter}: {error}") from error
            known = {name: float(loss) for name, loss in losses.items()}
            raise NotFiniteError("the predictions are", known, batches) from error
        return losses

    def _update(self, losses: dict[str, float], batches: list[list[dict]]) -> None:
        # Gradient clipping, a hook of the optimizer, must see the true gradients.
        self.grad_scaler.unscale_(self.optimizer)
        try:
            self.grad_scaler.step(self.optimizer)
        except GradientNotFiniteError as error:
            raise NotFiniteError("the gradient is", losses, batches) from error
        finally:
            self.grad_scaler.update()
        if self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() < SMALLEST_LOSS_SCALE:
            raise NotFiniteError("the gradient in float16, however the loss is scaled, is", losses, batches)

    def _fetch_batches(self) -> list[list[dict]]:
        error = None
        try:
            batches = [next(self._data_loader_iter) for _ in range(self.accumulate)]
        except InputError as found:
            error = str(found)
        if message := first_error(error):
            raise UnusableImageError(message)
        return batches

    def forward_backward(self, batch: list[dict], share: float) -> dict[str, Tensor]:
        """Add the gradients of one batch's losses, times `share` and the scale of float16, and return the losses."""
        with torch.autocast(self.device_type, self.precision, enabled=self.precision is not None):
            losses = {name: share * loss for name, loss in self.model(batch).items()}
        self.grad_scaler.scale(sum(losses.values())).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _exchange(
        self, losses: dict[str, Tensor], data_time: float, replaced: Sequence[tuple[str, str]]
    ) -> dict[str, float]:
        """The losses averaged over processes; of the rest that processes tell each other, log or note what they say."""
        # All losses in one transfer from the device, rather than one each.
        mine = torch.stack(list(losses.values())).tolist()
        everyone = np.array(numbers_of_all([*mine, data_time, len(replaced), self.signals.received]))
        self.signals.agreed = int(everyone[:, -1].max())
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=self.iter)
        # The slowest process determines how long all of them wait.
        storage.put_scalar("data_time", everyone[:, -3].max(), cur_iter=self.iter)
        if everyone[:, -2].any():
            self.replaced_images.report([image for images in comm.all_gather(replaced) for image in images])
        if self.replaced_images.count:
            count = self.replaced_images.count
            storage.put_scalar("replaced_images", count, smoothing_hint=False, cur_iter=self.iter)
        return dict(zip(losses, everyone[:, : len(mine)].mean(axis=0).tolist(), strict=True))

    def shares(self, batches: list[list[dict]]) -> list[float]:
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
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "replaced_images": self.replaced_images.state_dict(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        # A checkpoint of a run in another precision has no scale to continue with.
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        if "replaced_images" in state_dict:  # not in those of other programs
            self.replaced_images.load_state_dict(state_dict["replaced_images"])
        self._match_memory_layout()

    def _match_memory_layout(self) -> None:
        """Fused optimizers go through memory in order, so momenta saved in another layout would mix up silently."""
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)
