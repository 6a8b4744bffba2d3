"""The exception that ends the examination of an image that cannot be used."""

from typing import Literal


class UnfitError(Exception):
    """An image is ``corrupt`` or ``refused``; ``reason`` is a code of docs/image-checks.md."""

    def __init__(self, verdict: Literal["corrupt", "refused"], reason: str) -> None:
        super().__init__(f"{verdict}: {reason}")
        self.verdict = verdict
        self.reason = reason
