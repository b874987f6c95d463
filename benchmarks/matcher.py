"""Matching and set loss of all stages: ours against one stage after the other with costs across images.

python -m benchmarks.matcher [--json FILE] [--profile] [--repeats N] [--device cuda]
"""

import torch
from torch import Tensor, nn

from sparsercnn import HungarianMatcher, SetCriterion

from . import harness
from .baselines import PerStageCriterion
from .models import random_boxes, random_targets

BASELINE = "per stage, costs across images"


def check(ours: SetCriterion, plain: PerStageCriterion, logits: Tensor, boxes: Tensor, targets: list) -> None:
    """Pairs must be the baseline's, and losses equal to 1e-4 of each."""
    for stage, pairs in enumerate(ours.matcher(logits, boxes, targets)):
        for found, expected in zip(pairs, plain.match(logits[stage], boxes[stage], targets), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), "other pairs than the baseline"
    losses, expected = ours(logits, boxes, targets), plain(logits, boxes, targets)
    assert losses.keys() == expected.keys()
    difference = max((losses[name] / expected[name] - 1).abs().item() for name in losses)
    print(f"same pairs; largest relative difference of losses {difference:.1e}")
    assert difference < 1e-4, "losses differ from the baseline's"


def main(argv: list[str] | None = None) -> None:
    parser = harness.argument_parser(__doc__, repeats=15)
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--proposals", type=int, default=300)
    parser.add_argument("--objects", type=int, default=20, help="in each image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1216), metavar=("H", "W"))
    args = parser.parse_args(argv)

    generator = torch.Generator().manual_seed(0)
    shape = (args.stages, args.batch, args.proposals)
    logits = torch.randn(*shape, args.classes, generator=generator).sub_(2).to(args.device).requires_grad_()
    boxes = random_boxes(shape[0] * shape[1] * shape[2], *args.size, generator).view(*shape, 4)
    boxes = boxes.to(args.device).requires_grad_()
    targets = random_targets(args.batch, args.objects, *args.size, args.classes, generator)
    targets = [t.to(args.device) for t in targets]
    ours = SetCriterion(num_classes=args.classes, matcher=HungarianMatcher()).to(args.device)
    plain = PerStageCriterion(ours)
    check(ours, plain, logits, boxes, targets)

    def backward(criterion: nn.Module) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum(criterion(logits, boxes, targets).values()), (logits, boxes))

    title = f"{args.stages} stages, {args.batch} images, {args.proposals} proposals, {args.objects} objects each"
    comparisons = [
        *harness.compare(
            BASELINE,
            lambda: plain(logits, boxes, targets),
            {f"matching and loss, {title}": lambda: ours(logits, boxes, targets)},
            args.repeats,
            args.device,
        ),
        *harness.compare(
            BASELINE,
            lambda: backward(plain),
            {f"matching, loss and its backward, {title}": lambda: backward(ours)},
            args.repeats,
            args.device,
        ),
    ]
    if args.profile:
        parts = {"matching": (ours.matcher, "forward"), "matching: costs": (ours.matcher, "costs")}
        parts |= {"losses": (ours, "losses_of_pairs"), "losses: class": (ours, "_class_loss")}
        harness.print_profile("Ours", lambda: backward(ours), parts, args.device)
        parts = {"matching": (plain, "match"), "losses": (plain, "_losses")}
        harness.print_profile("Baseline", lambda: backward(plain), parts, args.device)
    harness.finish(args, comparisons)


if __name__ == "__main__":
    main()
