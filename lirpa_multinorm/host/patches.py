"""Patches, the host's linear forms of convolutions in its backward pass."""

from __future__ import annotations

from torch import Tensor

from ._load import HostModule, Patches, inplace_unfold

# Whether bounds of dense patches go back to the host as (B, C, H, W) or flat.
_PATCH_BOUNDS_ARE_IMAGES = not hasattr(HostModule, "concretize_bounds")


def unfold(image: Tensor, patches: Patches) -> Tensor:
    """Return the pixels of an image under each patch.

    Args:
        image: Tensor of shape (B, C, H, W).
        patches: Host patches over that image.

    Returns:
        (B, out_h, out_w, C, kh, kw), or (S, B, C, kh, kw) where only S unstable neurons are kept.
    """
    columns = inplace_unfold(
        image,
        kernel_size=patches.patches.shape[-2:],
        padding=patches.padding,
        stride=patches.stride,
        inserted_zeros=patches.inserted_zeros,
        output_padding=patches.output_padding,
    )
    if patches.unstable_idx is None:
        return columns
    return columns[:, patches.unstable_idx[1], patches.unstable_idx[2]].transpose(0, 1)


def shaped_bound(bound: Tensor, A, input_shape: tuple) -> Tensor:
    """Return a concretised bound (B, S) in the shape that this host expects for A."""
    if not _PATCH_BOUNDS_ARE_IMAGES or not isinstance(A, Patches) or A.unstable_idx is not None:
        return bound
    image = input_shape if A.identity == 1 else (A.patches.shape[0], *A.patches.shape[2:4])
    return bound.view(-1, *image)
