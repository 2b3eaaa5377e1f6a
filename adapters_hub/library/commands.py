"""The commands that messages tell a user to type: true in a checkout and in an installed wheel."""


def train_command(what: str, *arguments: str) -> str:
    """How an adapter is trained: ``what`` is ``language`` or ``domain``."""
    return " ".join(("adapters-hub train", what, *arguments))
