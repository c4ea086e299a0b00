"""What can go wrong while fitting or combining heads."""


class UnfitDataError(ValueError):
    """The rows cannot train or score what was asked; the message says why."""
