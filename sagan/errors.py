"""What a user can do wrong, said in one line."""


class UserError(ValueError):
    """A mistake of the user: the message says what was wrong, where, and what would be right.

    The command line prints the message alone and leaves with exit code 2; any other exception is a
    defect of ours and keeps its traceback.
    """
