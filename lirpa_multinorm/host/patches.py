"""Patches, in which the host's backward pass carries convolutions."""

from __future__ import annotations

from torch import Tensor

from ._load import HostModule, Patches, inplace_unfold

# Whether bounds of dense patches go back to the host as (B, C, H, W) or flat.
_PATCH_BOUNDS_ARE_IMAGES = not hasattr(HostModule, "concretize_bounds")


def unfold(image: Tensor, patches: Patches) -> Tensor:
    """Return what each patch sees of an image.

    Args:
        image: Tensor of shape (B, C, H, W).
        patches: Host patches over that image.

    Returns:
        (B, out_h, out_w, C, kh, kw), or (S, B, C, kh, kw) where only S unstable neurons are kept.
    """
    seen = inplace_unfold(
        image,
        kernel_size=patches.patches.shape[-2:],
        padding=patches.padding,
        stride=patches.stride,
        inserted_zeros=patches.inserted_zeros,
        output_padding=patches.output_padding,
    )
    if patches.unstable_idx is None:
        return seen
    return seen[:, patches.unstable_idx[1], patches.unstable_idx[2]].transpose(0, 1)


def shaped_bound(bound: Tensor, A, input_shape: tuple) -> Tensor:
    """Give a concretised bound (B, S) the shape that the host adds up.

    The shape depends on A and on the host's version.
    """
    if not _PATCH_BOUNDS_ARE_IMAGES or not isinstance(A, Patches) or A.unstable_idx is not None:
        return bound
    image = input_shape if A.identity == 1 else (A.patches.shape[0], *A.patches.shape[2:4])
    return bound.view(-1, *image)
