"""Batches of linear forms of the input, in the three forms that bound propagation meets.

A perturbation set needs four things of a linear form ``a``: its value ``a . z``, its absolute value
``|a| . r``, its norm, and - for a set that couples coordinates and is cut with a box - the
coordinates it looks at, side by side. Every result has shape (B, S): B inputs, S linear forms for
each.
"""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import host


class DenseRows:
    """Linear forms as a matrix.

    Args:
        A: Tensor of shape (B, S, n), or (1, S, n) where all inputs share it.
    """

    def __init__(self, A: Tensor) -> None:
        self.A = A

    def __getitem__(self, index: slice) -> DenseRows:
        return self if self.A.shape[0] == 1 else DenseRows(self.A[index])

    def apply(self, z: Tensor) -> Tensor:
        """Return a.z for z of the input's shape."""
        if self.A.shape[0] == 1:
            return z.flatten(1).matmul(self.A[0].t())
        return self.A.matmul(z.flatten(1).unsqueeze(-1)).squeeze(-1)

    def apply_abs(self, radius: Tensor) -> Tensor:
        r"""Return \\|a\\|.radius, the largest a.d over ``|d| <= radius``."""
        return DenseRows(self.A.abs()).apply(radius)

    def norm(self, p: float) -> Tensor:
        """Return the l_p norms of the linear forms."""
        if not self.A.shape[-1]:  # without coordinates torch has no largest one
            return self.A.new_zeros(self.A.shape[:-1])
        return torch.linalg.vector_norm(self.A, p, dim=-1)

    def couple(self, function: Callable, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
        """Return ``function(a, lower, upper, eps)`` with the coordinates last; eps is (B,)."""
        lower, upper = (bound.flatten(1).unsqueeze(1) for bound in (lower, upper))
        return function(self.A, lower, upper, eps.unsqueeze(1))


class IdentityRows:
    """The coordinates themselves as linear forms; every l_p ball is the same along a coordinate."""

    def __getitem__(self, index: slice) -> IdentityRows:
        return self

    def apply(self, z: Tensor) -> Tensor:
        """Return z, flattened."""
        return z.flatten(1)

    apply_abs = apply

    def norm(self, p: float) -> Tensor:
        """Return 1, the norm of every coordinate linear form for every p, on the CPU."""
        return torch.ones(1, 1, device="cpu")

    def couple(self, function: Callable, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
        """Return min(upper, eps): along one coordinate ball and box are intervals."""
        return torch.minimum(upper.flatten(1), eps.unsqueeze(1))


class PatchRows:
    """Linear forms of one patch each, as the host's backward pass through convolutions gives them.

    Args:
        patches: Host patches, dense (out_c, B, out_h, out_w, C, kh, kw) or sparse (S, B, C, kh,
            kw).
        input_shape: Shape of one input, (C, H, W).
    """

    def __init__(self, patches, input_shape: tuple) -> None:
        self.patches, self.input_shape = patches, tuple(input_shape)

    def __getitem__(self, index: slice) -> PatchRows:
        if self.patches.patches.shape[1] == 1:
            return self
        return PatchRows(
            self.patches.create_similar(self.patches.patches[:, index]), self.input_shape
        )

    def apply(self, z: Tensor) -> Tensor:
        """Return a.z for z of shape (B, C, H, W)."""
        return self.patches.matmul(z).flatten(1)

    def apply_abs(self, radius: Tensor) -> Tensor:
        r"""Return \\|a\\|.radius."""
        return self.patches.matmul(radius, patch_abs=True).flatten(1)

    def norm(self, p: float) -> Tensor:
        """Return the l_p norms of the linear forms; coordinates in the padding do not count."""
        inside = self.patches.patches.new_ones(1, *self.input_shape)

        def norm_inside(a: Tensor, mask: Tensor, _: Tensor, __: Tensor) -> Tensor:
            return torch.linalg.vector_norm(a * mask, p, dim=-1)

        return self.couple(norm_inside, inside, inside, inside.new_zeros(1))

    def couple(self, function: Callable, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
        """Return ``function(a, lower, upper, eps)`` with the coordinates of each patch last.

        eps has shape (B,).
        """
        a = self.patches.patches.flatten(-3)
        lower, upper = (host.unfold(bound, self.patches).flatten(-3) for bound in (lower, upper))
        if self.patches.unstable_idx is not None:  # a, lower, upper (S, B, k)
            return function(a, lower, upper, eps.unsqueeze(0)).transpose(0, 1)
        # a (O, B, h, w, k), lower and upper (B, h, w, k)
        a, lower, upper = a.permute(1, 2, 3, 0, 4), lower.unsqueeze(3), upper.unsqueeze(3)
        batch, rows, columns, channels, size = torch.broadcast_shapes(a.shape, lower.shape)
        if a.shape[0] != batch:
            a = a.expand(batch, -1, -1, -1, -1)
        value = function(
            a.reshape(-1, channels, size),
            lower.expand(batch, -1, -1, -1, -1).reshape(-1, 1, size),
            upper.expand(batch, -1, -1, -1, -1).reshape(-1, 1, size),
            eps.expand(batch).repeat_interleave(rows * columns).unsqueeze(-1),
        )
        return value.view(batch, rows * columns, channels).transpose(1, 2).reshape(batch, -1)


class KernelRows:
    """The outputs of a convolution as linear forms of its input: a kernel row at many positions.

    Args:
        weight: Kernel, shape (O, C / groups, kh, kw).
        stride: (height, width), and likewise ``padding`` and ``dilation``.
        groups: Number of groups.
        output_size: (out_h, out_w) of the convolution.
    """

    def __init__(
        self, weight: Tensor, stride, padding, dilation, groups: int, output_size: tuple
    ) -> None:
        self.weight, self.groups, self.output_size = weight, groups, tuple(output_size)
        self.options = {"stride": stride, "padding": padding, "dilation": dilation}

    def apply(self, z: Tensor) -> Tensor:
        """Return a.z for z of shape (B, C, H, W)."""
        return F.conv2d(z, self.weight, groups=self.groups, **self.options).flatten(1)

    def apply_abs(self, radius: Tensor) -> Tensor:
        r"""Return \\|a\\|.radius."""
        return F.conv2d(radius, self.weight.abs(), groups=self.groups, **self.options).flatten(1)

    def norm(self, p: float) -> Tensor:
        """Return the l_p norms of the kernel rows, padding included, as the host does."""
        norms = torch.linalg.vector_norm(self.weight.flatten(1), p, dim=1)
        return norms.view(1, -1, 1, 1).expand(1, -1, *self.output_size).flatten(1)

    def couple(self, function: Callable, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
        """Return ``function(a, lower, upper, eps)`` at every position; eps has shape (B,)."""
        batch, groups = lower.shape[0], self.groups
        a = self.weight.flatten(1).unflatten(0, (groups, -1))  # (G, O/G, k)
        lower, upper = (self._columns(bound) for bound in (lower, upper))  # (B*L, G, 1, k)
        positions = lower.shape[0] // batch
        eps = eps.expand(batch).repeat_interleave(positions).view(-1, 1, 1)
        value = function(a, lower, upper, eps)
        return value.flatten(1).view(batch, positions, -1).transpose(1, 2).reshape(batch, -1)

    def _columns(self, image: Tensor) -> Tensor:
        columns = F.unfold(image, self.weight.shape[-2:], **self.options)  # (B, C*kh*kw, L)
        return columns.transpose(1, 2).flatten(0, 1).unflatten(1, (self.groups, -1)).unsqueeze(2)


def as_rows(A, input_shape: tuple):
    """Wrap the linear forms that the host's backward pass gives at the input.

    Args:
        A: Tensor (B, S, *input), host ``Patches`` or ``eyeC``.
        input_shape: Shape of one input, without the batch.

    Returns:
        DenseRows, IdentityRows or PatchRows.
    """
    if isinstance(A, host.eyeC):
        return IdentityRows()
    if isinstance(A, host.Patches):
        return IdentityRows() if A.identity == 1 else PatchRows(A, input_shape)
    return DenseRows(A.flatten(2))
