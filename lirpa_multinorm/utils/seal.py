"""Zip archives that carry the SHA-256 of their bytes in the archive's comment."""

from __future__ import annotations

import hashlib
import re
import struct

_SEAL = re.compile(rb"sha256:[0-9a-f]{64}")
_SEAL_LENGTH = 71
#: Starts the last 22 bytes of a zip archive; its last two are the length of a comment.
_ZIP_END = b"PK\x05\x06"


def sealed(archive: bytes) -> bytes:
    """Return a zip archive, as ``torch.save`` writes it, with its bytes' SHA-256 in its comment.

    Args:
        archive: The archive, without a comment.

    Returns:
        The archive with one, as any reader of zip files takes it.

    Example:
        >>> import io
        >>> import torch
        >>> buffer = io.BytesIO()
        >>> torch.save({"epoch": 3}, buffer)
        >>> content = sealed(buffer.getvalue())
        >>> is_sealed(content), torch.load(io.BytesIO(content))
        (True, {'epoch': 3})
    """
    seal = b"sha256:" + hashlib.sha256(archive).hexdigest().encode()
    return archive[:-2] + struct.pack("<H", len(seal)) + seal


def is_sealed(content: bytes) -> bool:
    """Return whether a file is one that :func:`sealed` made.

    False for a zip archive without any comment.

    Raises:
        ValueError: The file is not what was written: its bytes do not have the SHA-256 that it
            names.
    """
    start = len(content) - _SEAL_LENGTH
    seal, length = content[max(start, 0) :], content[max(start - 2, 0) : max(start, 0)]
    if content[-22:-18] == _ZIP_END and content[-2:] == b"\0\0":
        return False
    complete = bool(_SEAL.fullmatch(seal)) and length == struct.pack("<H", _SEAL_LENGTH)
    if not complete or sealed(content[: start - 2] + b"\0\0") != content:
        raise ValueError(
            "its content does not have the SHA-256 that was written with it: bytes were changed or"
            " lost"
        )
    return True
