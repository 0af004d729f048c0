"""Processes: how ranks are started, watched and ended. No tensors."""


class LaunchError(RuntimeError):
    """Ranks could not be started; the message says what to do about it."""


class RankError(RuntimeError):
    """A rank ended without a result, or with one that can't be sent."""


class RemoteTraceback(Exception):
    """The cause of an exception that was raised on another process: where that was, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text.rstrip()}"
