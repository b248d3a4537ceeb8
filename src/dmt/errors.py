"""The one error class whose message is meant for the user rather than for a developer."""


class UserInputError(ValueError):
    """A wrong option, file or value.

    The message is one line that names the option, the value found and the fix. The ``dmt`` command
    prints it without a traceback and exits with code 2; in Python it is an ordinary ``ValueError``.

    Args:
        message: that line.
        on_every_rank: every rank of a run raises it alike, so that one of them showing it is enough.
    """

    def __init__(self, message: str, *, on_every_rank: bool = False) -> None:
        super().__init__(message)
        self.on_every_rank = on_every_rank
