"""The error of every image and video that cannot be used."""


class MediaError(ValueError):
    """An image that cannot be used; the message names the file, what was expected and what came."""
