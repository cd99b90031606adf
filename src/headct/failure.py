"""What every room raises when the user, not the program, has something to change.

A bad input file is never a `Failure`: it becomes a `headct.scan.Rejection`. A mistake of ours is an assertion.
"""

from __future__ import annotations


class Failure(Exception):
    """A job cannot go on: what happened, why, and what to do. The command line prints it and ends with 1.

    `what` is a sentence without a full stop that names the thing; `why` and `do` may be empty. All three are
    positional so that the exception survives pickling from a worker.
    """

    def __init__(self, what: str, why: str = "", do: str = "") -> None:
        super().__init__(what, why, do)
        self.what, self.why, self.do = what, why, do

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.do:
            lines.append(f"  do:  {self.do}")
        return "\n".join(lines)


class Misuse(Failure):
    """The job was asked for in a way that cannot work, whatever the input: the command line ends with 2.

    An unknown name, two recipes that disagree, an option without its partner.
    """
