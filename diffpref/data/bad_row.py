"""The error of a row that cannot be used."""


class BadRow(ValueError):
    """A row that cannot be used: `reason` is what is counted, the message what is shown."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
