"""How a command says that it cannot do what it was asked."""


class Failed(Exception):
    """The command ends with exit code 1 and this message, one line on standard error."""
