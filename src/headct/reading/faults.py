"""What goes wrong inside this room, as an exception, until it reaches the door and becomes a `Rejection`."""

from __future__ import annotations

from headct.scan import REASONS, Rejection


class Fault(Exception):
    """A file cannot be used, for the reason `code` of `headct.scan.REASONS`; the message is the sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        if code not in REASONS:
            raise ValueError(f"unknown rejection code {code!r}; codes are listed in headct.scan.REASONS")
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence

    def rejection(self, *files: str) -> Rejection:
        """The rejection of these files (names as `Source.name`) for this fault."""
        return Rejection.because(self.code, self.sentence, files)
