"""`python train.py …` is `sagan train …`, for launchers that want a script."""

import sys

from sagan.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
