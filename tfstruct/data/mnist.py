"""MNIST from the files inside this package: 70,000 images and their labels, no download.

The four idx files of LeCun, Cortes & Burges are stored as they were published, with xz in place of gzip
(9.3 MB for 11.6). Each is checked against the sha256 of its published content when it is unpacked.

References:
    LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document recognition, 1998.
"""

import functools
import hashlib
import importlib.resources
import lzma
import math

import numpy as np

# sha256 of the unpacked idx files.
_FILES = {
    ("train", "images"): (
        "train-images-idx3-ubyte",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    ("train", "labels"): (
        "train-labels-idx1-ubyte",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    ("test", "images"): (
        "t10k-images-idx3-ubyte",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    ("test", "labels"): (
        "t10k-labels-idx1-ubyte",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
_UNSIGNED_BYTES = 8  # the idx code of the element type


@functools.cache
def read(part: str, content: str = "images") -> np.ndarray:
    """Reads one of the four files; read once for each process, hence read-only.

    Args:
        part: `train` (60,000) or `test` (10,000), in the published order.
        content: `images`, intensities 0..255 with white ink 255, or `labels`, the digits.

    Returns:
        uint8 [n, 28, 28] or [n].

    Raises:
        ValueError: for an unknown part or content, and for a file that is damaged.
    """
    if (part, content) not in _FILES:
        known = ", ".join(f"{pair[0]} {pair[1]}" for pair in _FILES)
        raise ValueError(f"MNIST has {known}; found {part} {content}")
    name, digest = _FILES[part, content]
    resource = importlib.resources.files("tfstruct.data").joinpath("embedded", f"{name}.xz")
    return parse_idx(unpack(resource.read_bytes(), digest, f"{name}.xz"), name)


def unpack(packed: bytes, digest: str, name: str) -> bytes:
    """Returns the content of an xz file.

    Args:
        packed: the file.
        digest: sha256 of the content, in hexadecimal.
        name: names the file in messages.

    Raises:
        ValueError: if the file cannot be unpacked or its content has another sha256.
    """
    try:
        content = lzma.decompress(packed, format=lzma.FORMAT_XZ)
    except lzma.LZMAError as error:
        raise ValueError(f"the embedded file {name} is damaged ({error}): reinstall tfstruct") from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ValueError(
            f"the embedded file {name} is damaged: its content has sha256 {found}, expected {digest}. "
            "Reinstall tfstruct."
        )
    return content


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """Parses an idx file of unsigned bytes: two zeros, type code 8, rank, big-endian uint32 sizes, values.

    Returns:
        A read-only uint8 array that shares the memory of `content`.

    Raises:
        ValueError: for another header or a length that does not fit it.
    """
    rank = content[3] if len(content) > 3 else 0
    start = 4 + 4 * rank
    if content[:3] != bytes([0, 0, _UNSIGNED_BYTES]) or len(content) < start:
        raise ValueError(f"{name} is not an idx file of unsigned bytes: it starts with {content[:4].hex()}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=rank, offset=4))
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{name} declares the shape {shape} but holds {len(content) - start} values")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
