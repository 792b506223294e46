"""Makes PNG pictures small: python docs/pictures/shrink.py FILE..., each a .png or an executed .ipynb.

A picture is stored with a palette of at most 256 colours, without dithering: the same picture where it has no more
colours than that, and a third of the bytes.
"""

import base64
import io
import json
import sys
from pathlib import Path

from PIL import Image

from tfstruct.files import replacing


def shrunk(content: bytes) -> bytes:
    """A PNG with a palette; as it was if that is no smaller."""
    picture, buffer = Image.open(io.BytesIO(content)), io.BytesIO()
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return min(content, buffer.getvalue(), key=len)


def shrink_notebook(content: bytes) -> bytes:
    """A notebook with small pictures."""
    notebook = json.loads(content)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in (data := output.get("data", {})):
                data["image/png"] = base64.b64encode(shrunk(base64.b64decode(data["image/png"]))).decode()
    return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()


def main() -> None:
    """Shrinks each file in place."""
    for path in map(Path, sys.argv[1:]):
        content = path.read_bytes()
        small = shrink_notebook(content) if path.suffix == ".ipynb" else shrunk(content)
        with replacing(path) as file:
            file.write(small)
        print(f"{path}: {len(content):,} to {len(small):,} bytes")


if __name__ == "__main__":
    main()
