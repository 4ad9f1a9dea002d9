"""`python sample.py …` is `sagan sample …`, for launchers that want a script."""

import sys

from sagan.cli import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
