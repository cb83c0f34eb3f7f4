"""The process that decodes one image: `python -P -m model.data.decode_process FILE` writes its size and RGB pixels."""

import sys
from pathlib import Path

from model.data.media import open_here
from model.data.media_error import MediaError


def main() -> int:
    try:
        image = open_here(Path(sys.argv[1]))
    except MediaError as error:
        print(error, file=sys.stderr)
        return 2
    sys.stdout.buffer.write(f"{image.width} {image.height}\n".encode() + image.tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
