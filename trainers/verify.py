"""Checks a bundle before it is trusted or served: tfstruct-verify --model=saved_models/graph_vae/mnist.

Files against their checksums, the graph against what bundles may do, warm-up records, golden values; the graph is not
loaded before it has passed. Exit status 0: all of it holds.
"""

from absl import flags

from tfstruct.trainers import entry

_MODEL = flags.DEFINE_string("model", None, "Folder of an exported model, or <system>/<preset>.", required=True)
_VERSION = flags.DEFINE_integer("version", None, "Of several numbered versions; default the largest.")
_SHA256 = flags.DEFINE_string("sha256", None, "Expected SHA-256 of the bundle's SHA256SUMS, from a place you trust.")


def main() -> None:
    """Prints what was found, and the digest to pin."""
    from tfstruct.files import CHECKSUMS_NAME, sha256
    from tfstruct.serving.client import find
    from tfstruct.serving.verification import verify

    folder = find(_MODEL.value, version=_VERSION.value)
    verify(folder, sha256=_SHA256.value)
    print(f"{folder}: files, graph, signatures, warm-up records and golden values are right")
    print(f"sha256 of {CHECKSUMS_NAME}: {sha256(folder / CHECKSUMS_NAME)}")


def run() -> None:
    """The console script `tfstruct-verify`."""
    entry.run(main)


if __name__ == "__main__":
    run()
