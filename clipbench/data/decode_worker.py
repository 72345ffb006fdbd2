"""The decoding process: `python -m clipbench.data.decode_worker`, driven by `decode_stream._Pool` over its pipes."""

from __future__ import annotations

import contextlib
import signal
import sys

from clipbench.data.decode_stream import decode_into, map_pixels, receive, send


def main() -> None:
    """Decode groups of images into shared memory until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which closes the pipe
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray print must not end up between two messages
    with contextlib.suppress(EOFError, BrokenPipeError):
        file, shape, preprocess = receive(sys.stdin.buffer)
        pixels = map_pixels(file, shape)
        while True:
            slot, start, images = receive(sys.stdin.buffer)
            target = pixels[slot, start : start + len(images)]
            send(answers, decode_into(target, images, preprocess))


if __name__ == "__main__":
    main()
