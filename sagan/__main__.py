"""`python -m sagan …` is `sagan …`."""

from sagan.cli import main

main()
