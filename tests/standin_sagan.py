"""`sagan` with the stand-in extractor registered, for tests that start processes: python standin_sagan.py ARGUMENTS."""

from standin import register_standin

from sagan.cli import main

if __name__ == "__main__":
    register_standin()
    main()
