"""`sagan …` in this process."""

from sagan.cli import main


def sagan(*arguments: object) -> int:
    """The exit code of `sagan ARGUMENTS`."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    raise AssertionError("main() always leaves with a code")
