"""What lies in a bundle's folder, and whether it is what was written."""

from pathlib import Path

from tfstruct.files import CHECKSUMS_NAME, listed_files, read_checksums, sha256

CARD_NAME = "card.json"
PAGE_NAME = "MODEL_CARD.md"
GOLDEN_NAME = "golden.npz"
GRAPH_NAME = "saved_model.pb"
WARMUP_NAME = Path("assets.extra") / "tf_serving_warmup_requests"
#: Most bytes of the files that are read into memory whole.
LARGEST_BYTES = {
    CHECKSUMS_NAME: 2**20,
    CARD_NAME: 2**24,
    GOLDEN_NAME: 2**28,
    str(WARMUP_NAME): 2**28,
    GRAPH_NAME: 2**29,
}
_NAMES = {CARD_NAME, PAGE_NAME, CHECKSUMS_NAME, GOLDEN_NAME, GRAPH_NAME, str(WARMUP_NAME)}


class DamagedBundleError(ValueError):
    """A bundle whose files are not those that were written, or that does not give its golden values."""


class UntrustedBundleError(ValueError):
    """A bundle that could do more than compute: read or write files, say, or run Python."""


def verify_files(folder: Path, pinned: str | None = None) -> None:
    """Checks a bundle's files against its checksums, without reading the graph.

    Args:
        folder: the bundle.
        pinned: SHA-256 of the list of checksums itself, from where an attacker cannot write. Without it the checks find
            damage, and nobody who wrote the list anew.

    Raises:
        DamagedBundleError: a file is missing, changed, or was added, or the list is not the pinned one.
    """
    listing = folder / CHECKSUMS_NAME
    if not listing.is_file():  # a named pipe would be waited for
        raise DamagedBundleError(f"{folder} has no {CHECKSUMS_NAME}")
    if pinned is not None and sha256(listing) != pinned.lower():
        raise DamagedBundleError(f"{listing} has the SHA-256 {sha256(listing)}, expected {pinned}")
    for name, most in LARGEST_BYTES.items():
        if (folder / name).exists() and (size := (folder / name).stat().st_size) > most:
            raise DamagedBundleError(f"{folder / name} has {size:,} bytes, expected at most {most:,}")
    try:
        expected = read_checksums(folder)
    except ValueError as error:
        raise DamagedBundleError(str(error)) from None
    for path in sorted(folder.rglob("*")):
        if not (path.is_file() or path.is_dir()):  # a named pipe, which is on no list and would be waited for
            raise DamagedBundleError(f"{path} is no file")
    found = {str(path.relative_to(folder)): path for path in listed_files(folder)}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise DamagedBundleError(f"{folder / name} is missing")
        if name not in expected:
            raise DamagedBundleError(f"{folder / name} is not listed in {CHECKSUMS_NAME}")
        if sha256(found[name]) != expected[name]:
            raise DamagedBundleError(f"{folder / name} does not have the checksum in {CHECKSUMS_NAME}")


def require_known_files(folder: Path) -> None:
    """Raises UntrustedBundleError for what is no file of its own, and for files that this library never writes."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UntrustedBundleError(f"{path} is a link or no file, found where a bundle has only files of its own")
        if path.is_file() and str(name) not in _NAMES and name.parts[0] != "variables":
            raise UntrustedBundleError(f"{path} is no file of a bundle, which has {', '.join(sorted(_NAMES))}")
