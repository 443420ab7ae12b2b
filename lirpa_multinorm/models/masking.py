"""Networks that view an image with parts hidden, so that a patch changes few of the views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidArgumentError, UnsupportedModelError
from .cnn import cnn_small

_CHUNK = 1 << 11  # views at once, whose intermediate results fit into a cache


class DoubleMasking(nn.Module):
    """Classify an image by views of it with any two of its parts hidden.

    The parts are rectangles ("masks") such that each place of a patch lies within one of them. With
    ``D_k(i, j)`` the margin ``z_k - max_(l != k) z_l`` of a network's logits z on the image without
    masks i and j (i = j: without one), the output is ``f_k(x) = max_i min_j D_k(i, j)``.

    A patch within mask m leaves all ``D_k(m, j)`` as they are. Whatever it shows, ``f_k`` is at
    least ``min_j D_k(m, j)`` and at most ``max_i D_k(i, m)``, which :meth:`patch_bounds` returns.
    Where all views agree on a class, no patch changes it.

    In training mode the output is the network's logits on one view of each image: of several random
    views that which speaks least for the class that the network sees in the whole image.

    Args:
        network: Classifier of views, (B, C + 1, H, W) -> (B, K); the last channel is 1 where pixels
            are hidden, and the others are 0 there.
        in_shape: Shape (C, H, W) of one image.
        patch_side: Rows and columns of the largest patch that lies within a mask at every place.
        masks_per_side: Rows and columns of masks. M masks give M (M + 1) / 2 views. The outer ones
            are larger, since objects stand in the middle of images.
        candidates: How many views of an image training draws.

    Raises:
        InvalidArgumentError: There is one mask only, or as many do not fit.

    Source: Xiang et al. 2022, PatchCleanser, section 3, for the pairs of masks and why agreement is
    a certificate; Saha et al. 2023, Revisiting Image Classifier Training for Improved Certified
    Robust Defense against Adversarial Patches, for training on hard views. The output, its bounds
    and the choice of the view are this package's.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(128, 10))
        >>> model = DoubleMasking(network, (1, 8, 8), patch_side=2, masks_per_side=2).eval()
        >>> model(torch.rand(3, 1, 8, 8)).shape, model.margins(torch.rand(3, 1, 8, 8)).shape
        (torch.Size([3, 10]), torch.Size([3, 4, 4, 10]))
    """

    hidden_rows: Tensor
    hidden_columns: Tensor
    visible: Tensor
    views: Tensor

    def __init__(
        self,
        network: nn.Module,
        in_shape: Sequence[int],
        patch_side: int = 5,
        masks_per_side: int = 4,
        candidates: int = 8,
    ) -> None:
        super().__init__()
        for name, count in (("patch_side", patch_side), ("candidates", candidates)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise InvalidArgumentError(f"{name}={count!r} must be a whole number of at least 1")
        if len(in_shape) != 3:
            raise InvalidArgumentError(f"in_shape={in_shape!r} is not (C, H, W) of an image")
        self.network, self.in_shape, self.candidates = network, tuple(in_shape), candidates
        rows = torch.tensor(_strips(in_shape[1], patch_side, masks_per_side))
        columns = torch.tensor(_strips(in_shape[2], patch_side, masks_per_side))
        masks = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)
        first, second = torch.triu_indices(len(masks), len(masks))
        views = torch.empty(len(masks), len(masks), dtype=torch.long)
        views[first, second] = views[second, first] = torch.arange(len(first))
        buffers = {
            "hidden_rows": rows,
            "hidden_columns": columns,
            "visible": (~(masks[first] | masks[second])).unsqueeze(1).float(),
            "views": views,  # the number of each pair's view
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return f of images (B, C, H, W), (B, K); in training mode logits of hard views."""
        if self.training:
            return self._logits(x, self.visible[self._hard_views(x)])
        return self.margins(x).amin(2).amax(1)

    def margins(self, x: Tensor) -> Tensor:
        """Return the margins of all views of images (B, C, H, W), (B, M, M, K).

        Raises:
            UnsupportedModelError: It is traced; no host bounds the largest of several margins.
        """
        if torch.jit.is_tracing():
            raise UnsupportedModelError(
                "model: DoubleMasking takes the largest and smallest margins of its views, which"
                " bound propagation does not support; it offers bounds for patches: certify it for"
                " PerturbationPatch alone (--patch 5x5 --norms none), and train it by the natural"
                " loss (--losses natural)"
            )
        logits = []
        for visible in self.visible.split(max(1, _CHUNK // max(1, len(x)))):
            views = x.repeat_interleave(len(visible), 0)
            masks = visible.repeat(len(x), 1, 1, 1)
            logits.append(self._logits(views, masks).unflatten(0, (len(x), len(visible))))
        values = torch.cat(logits, 1)
        largest, second = values.topk(2, 2).values.split(1, 2)
        return (values - torch.where(values == largest, second, largest))[:, self.views]

    def patch_bounds(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return bounds of the outputs for a patch at each place, which may show anything.

        Args:
            x: Images, (B, C, H, W).
            height: Rows of the patch.
            width: Its columns.

        Returns:
            Lower and upper bounds, (B, H - height + 1, W - width + 1, K) each; infinite where the
            patch lies within no mask.

        Raises:
            UnsupportedModelError: The module is in training mode, where its views are random, or
                its network does not treat each view by itself.
        """
        if any(layer.training for layer in self.modules()):
            raise UnsupportedModelError(
                "model: DoubleMasking draws views at random in training mode; call eval() on it"
            )
        self._check_views(x)
        rows, columns = _within(self.hidden_rows, height), _within(self.hidden_columns, width)
        within = (rows.T[:, None, :, None] & columns.T[None, :, None, :]).flatten(2)
        # Places that lie within the same masks have the same bounds.
        kinds, kind = within.flatten(0, 1).unique(dim=0, return_inverse=True)
        margins, lower, upper = self.margins(x), [], []
        for masks in kinds:
            if masks.any():
                lower.append(margins[:, masks].amin(2).amax(1))
                upper.append(margins[:, masks].amin(1).amax(1))
            else:
                lower.append(torch.full_like(margins[:, 0, 0], -torch.inf))
                upper.append(torch.full_like(margins[:, 0, 0], torch.inf))
        places = kind.view(within.shape[:2])
        return torch.stack(lower, 1)[:, places], torch.stack(upper, 1)[:, places]

    @torch.no_grad()
    def _check_views(self, x: Tensor) -> None:
        """Raise UnsupportedModelError where the logits of a view depend on the other views."""
        image, visible = x[:1], self.visible[:1]
        alone = self._logits(image, visible)
        beside = self._logits(torch.cat([image, 1 - image, 3 * image]), visible.repeat(3, 1, 1, 1))
        if not torch.allclose(beside[: len(image)], alone, 1e-3, 1e-4):
            raise UnsupportedModelError(
                "model: the network inside DoubleMasking mixes views (BatchNorm without running"
                " statistics?), so that a patch in one changes others; use layers that treat each"
                " input by itself"
            )

    @torch.no_grad()
    def _hard_views(self, x: Tensor) -> Tensor:
        """Return the numbers of the views to train on, (B,)."""
        drawn = torch.randint(len(self.visible), (self.candidates, len(x)), device=x.device)
        if self.candidates == 1:
            return drawn[0]
        classes = self._logits(x, torch.ones_like(x[:, :1])).argmax(1)
        losses = [
            F.cross_entropy(self._logits(x, self.visible[views]), classes, reduction="none")
            for views in drawn
        ]
        hardest = torch.stack(losses).argmax(0, keepdim=True)
        return drawn.gather(0, hardest)[0]

    def _logits(self, x: Tensor, visible: Tensor) -> Tensor:
        """Return the network's logits on images of which a part is visible."""
        return self.network(torch.cat([x * visible, 1 - visible], 1))

    def extra_repr(self) -> str:
        """Return how many masks there are a side, which ``print(model)`` shows."""
        return f"masks_per_side={len(self.hidden_rows)}"


def masked_cnn(
    in_shape: Sequence[int],
    num_classes: int,
    width: int = 16,
    patch_side: int = 5,
    masks_per_side: int = 4,
    candidates: int = 8,
    batch_norm: bool = False,
) -> nn.Sequential:
    """Build a :func:`cnn_small` that views an image with any two of its parts hidden.

    Args:
        in_shape: Shape (C, H, W) of one image.
        num_classes: Number of outputs K.
        width: Channels of the first convolution.
        patch_side: Rows and columns of the largest patch that lies within a mask at every place.
        masks_per_side: Rows and columns of masks: 4 are 16 masks, with 136 views of an image.
        candidates: How many views of an image training draws, of which it takes the hardest.
        batch_norm: Whether BatchNorm stands behind each layer but the last.

    Returns:
        A network from (B, C, H, W) to (B, K): a :class:`DoubleMasking`.

    Raises:
        InvalidArgumentError: If the image is too small for the masks or the strides.

    Example:
        >>> model = masked_cnn((1, 8, 8), 10, width=4, patch_side=2, masks_per_side=2)
        >>> model.eval()(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """
    channels, *sides = in_shape
    network = cnn_small((channels + 1, *sides), num_classes, width, batch_norm)
    return nn.Sequential(DoubleMasking(network, in_shape, patch_side, masks_per_side, candidates))


def _strips(side: int, patch: int, masks: int) -> list[list[bool]]:
    """Return which rows each mask hides, (masks, side), so that a patch lies within one of them."""
    places = side - patch + 1
    if not isinstance(masks, int) or not 2 <= masks <= places:
        raise InvalidArgumentError(
            f"masks_per_side={masks}, patch_side={patch}: a patch has {max(places, 0)} places among"
            f" {side} rows or columns of pixels; give at least 2 masks, and at most one a place"
        )
    outer = min(patch - 1, (places - masks) // 2)  # places that the outer masks have beside theirs
    inner = (places - 2 * outer) / masks
    ends = [0, *(int(outer + inner * number + 0.5) for number in range(1, masks)), places]
    return [
        [begin <= row < end + patch - 1 for row in range(side)]
        for begin, end in zip(ends, ends[1:])
    ]


def _within(strips: Tensor, length: int) -> Tensor:
    """Return which places of a segment lie within each strip, (masks, places)."""
    return strips.unfold(1, length, 1).all(2)
