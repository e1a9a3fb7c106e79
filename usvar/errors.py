"""The two exceptions that end a script with one line: a wrong input, and a run that cannot go on."""


class InputError(ValueError):
    """A wrong input: its message says what was found, what was wanted and what to do, in one line.

    `usvar.cli.run` prints the message and ends the process with exit code 2. Every other exception but
    RunError is a fault of the code and keeps its traceback.
    """


class RunError(RuntimeError):
    """A run that started correctly and cannot continue: disk full, a hanging read, a loss that is not finite.

    The message says what happened, what is saved and what to do. `usvar.cli.run` prints it and ends the
    process with exit code 3.
    """
