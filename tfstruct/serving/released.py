"""Pretrained models that are not installed, fetched from where a release puts them.

`released_models.json` lists the archives of a release with their SHA-256: what is fetched is what was released, whoever
sends it. `python -m tfstruct.serving.released --output=archives` writes archives and list from a folder of bundles.
"""

import argparse
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tfstruct.files import CHECKSUMS_NAME, PathLike, listed_files, read_json, replacing, sha256, write_json
from tfstruct.serving.contents import CARD_NAME, DamagedBundleError

LIST = Path(__file__).with_name("released_models.json")
#: address in place of the list's, such as that of a mirror
URL_VARIABLE = "TFSTRUCT_MODELS_URL"
#: folder of what was fetched; default that of the user's other cached files
CACHE_VARIABLE = "TFSTRUCT_CACHE"
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest of ZIP: equal bundles make equal archives


class Released(NamedTuple):
    """The archives of a release.

    Attributes:
        url: where they lie, ending with a slash; empty where that is not known.
        archives: name of the archive and its SHA-256, by `<system>/<preset>/<version>`.
    """

    url: str
    archives: Mapping[str, tuple[str, str]]

    @classmethod
    def read(cls) -> "Released":
        """Reads the list of archives; the environment may name another address."""
        content = read_json(LIST)
        archives = {name: (entry["archive"], entry["sha256"]) for name, entry in content["models"].items()}
        return cls(str(os.environ.get(URL_VARIABLE, content["url"])), archives)

    def versions(self, name: str) -> list[int]:
        """Returns the versions of `<system>/<preset>` that were released, sorted."""
        return sorted(int(key.rpartition("/")[2]) for key in self.archives if key.rpartition("/")[0] == name)

    def names(self) -> list[str]:
        """Returns the models that `fetch` could fetch, sorted; none without an address."""
        return sorted({key.rpartition("/")[0] for key in self.archives}) if self.url else []

    def fetch(self, name: str, version: int | None = None) -> Path | None:
        """Returns the folder of a released bundle, from the cache where it was fetched before.

        Args:
            name: `<system>/<preset>`.
            version: default the newest.

        Returns:
            The folder; None where no such bundle was released, or no address is known.

        Raises:
            OSError: it cannot be fetched.
            DamagedBundleError: what came is not what was released.
        """
        import pooch

        versions = self.versions(name)
        version = versions[-1] if version is None and versions else version
        if version not in versions or not self.url:
            return None
        archive, digest = self.archives[f"{name}/{version}"]
        url = f"{self.url.rstrip('/')}/{archive}"
        cache = Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("tfstruct"))
        unpacked = f"{archive.removesuffix('.zip')}-{digest[:12]}"
        pooch.get_logger().setLevel("WARNING")
        try:
            pooch.retrieve(
                url,
                known_hash=f"sha256:{digest}",
                fname=archive,
                path=cache,
                processor=pooch.Unzip(extract_dir=unpacked),
                progressbar=sys.stderr is not None and sys.stderr.isatty(),
            )
        except OSError as error:
            raise OSError(
                f"{name} is not installed and could not be fetched from {url}: {error}. Fetch that archive elsewhere, "
                f"unpack it as <folder>/{name}/{version}, and set TFSTRUCT_MODELS=<folder>"
            ) from error
        except ValueError as error:
            raise DamagedBundleError(f"what came from {url} is not what was released: {error}") from error
        return cache / unpacked


def write_archives(bundles: PathLike, output: PathLike, listing: PathLike, url: str = "") -> Path:
    """Writes an archive of the newest version of each bundle, and the list of them.

    Equal bundles make equal archives, byte by byte, on every machine.

    Args:
        bundles: folder of `<system>/<preset>/<version>`.
        output: folder of the archives.
        listing: the list, `released_models.json`.
        url: where the archives will lie.

    Returns:
        The list.
    """
    newest: dict[str, Path] = {}
    for card in sorted(Path(bundles).glob(f"*/*/*/{CARD_NAME}")):
        folder = card.parent
        name = f"{folder.parents[1].name}/{folder.parent.name}"
        if folder.name.isdecimal() and (name not in newest or int(folder.name) > int(newest[name].name)):
            newest[name] = folder
    models: dict[str, Any] = {}
    for name, folder in newest.items():
        archive = f"{name.replace('/', '-')}-{folder.name}.zip"
        with replacing(Path(output) / archive) as file, zipfile.ZipFile(file, "w") as written:
            # Not compressed: weights do not get smaller, and compressors differ.
            for path in (*listed_files(folder), folder / CHECKSUMS_NAME):
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _TIME)
                written.writestr(entry, path.read_bytes())
        models[f"{name}/{folder.name}"] = {"archive": archive, "sha256": sha256(Path(output) / archive)}
    return write_json(listing, {"url": url, "models": models})


def main() -> None:
    """Writes the archives of a release."""
    parser = argparse.ArgumentParser(prog="python -m tfstruct.serving.released", description=main.__doc__)
    parser.add_argument("--bundles", default="saved_models", help="folder of <system>/<preset>/<version>")
    parser.add_argument("--output", required=True, help="folder of the archives")
    parser.add_argument("--list", default=LIST, help="the list of them; default the package's own")
    parser.add_argument("--url", default="", help="where the archives will lie")
    arguments = parser.parse_args()
    print(write_archives(arguments.bundles, arguments.output, arguments.list, arguments.url))


if __name__ == "__main__":
    main()
