"""The errors of images and videos that cannot be used."""


class MediaError(ValueError):
    """An image that cannot be used; the message names the file, what was expected and what came."""


class MissingFile(MediaError):
    """The file of an image or a video is not there."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name  # below the folder of the data's media


class MissingLibrary(ValueError):
    """A package that reads a kind of media is not installed: no fault of the row."""
