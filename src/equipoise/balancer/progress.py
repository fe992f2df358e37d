"""How far training has come, on the host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """How far training and the step at hand have come, on the host.

    Attributes:
        steps: The steps so far.
        passes: The backward passes of this step that have gone through the total loss.
        weighed: Whether losses have been weighed in this step that is no more than a weighted sum.
        present: Which tasks had a loss in the last forward pass; None: all.
        everyone: Whether all tasks had one in each forward pass; None where there was none, or only compiled ones.
    """

    steps: int = 0
    passes: int = 0
    weighed: bool = False
    present: tuple[bool, ...] | None = None
    everyone: bool | None = None

    def begin(self) -> None:
        """Begin a step."""
        self.passes, self.weighed, self.present, self.everyone = 0, False, None, None

    def end(self) -> None:
        """End a step, and begin the next."""
        self.steps += 1
        self.begin()
