"""The one exception that a user's input can cause."""


class InputError(ValueError):
    """A wrong input: its message says what was found, what was wanted and what to do, in one line.

    `usvar.cli.run` prints the message and ends the process with exit code 2. Every other exception is a
    fault of the code and keeps its traceback.
    """
