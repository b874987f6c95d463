"""What detectors cost: parameters and multiply-adds of their parts."""

from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn


class _Traceable(nn.Module):
    """A detector as a function of tensors, which is all that fvcore can trace."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> Tensor:
        return self.detector([{"image": image}])[0]["instances"].scores


def count_parameters(detector: nn.Module) -> dict[str, float]:
    """Millions of parameters of the bottom-up network, the neck, the head, and in total with the proposals.

    Args:
        detector: has a `backbone` with a `bottom_up`, and a `head`.
    """

    def count(module: nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e6

    parts = ("backbone", "backbone.bottom_up", "head")
    return _by_part(count(detector), *(count(detector.get_submodule(part)) for part in parts))


def count_gmacs(detector: nn.Module, image: Tensor) -> dict[str, float]:
    """Billions of multiply-adds for one image (3, H, W), by part, as fvcore counts them.

    It counts convolutions and matrix products and, with less weight, norms and interpolation; RoI pooling and other
    element-wise arithmetic are left out.
    """
    flops = _analyze(detector, image).by_module()
    parts = ("", "detector.backbone", "detector.backbone.bottom_up", "detector.head")
    return _by_part(*(flops[part] / 1e9 for part in parts))


def count_total_gmacs(detector: nn.Module, image: Tensor) -> float:
    """The total of `count_gmacs`, of any detector."""
    return _analyze(detector, image).total() / 1e9


def _analyze(detector: nn.Module, image: Tensor) -> FlopCountAnalysis:
    analysis = FlopCountAnalysis(_Traceable(detector.eval()), image)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")


def _by_part(total: float, backbone: float, bottom_up: float, head: float) -> dict[str, float]:
    return {"bottom-up": bottom_up, "neck": backbone - bottom_up, "head": head, "total": total}
