"""Settings of the report of a run."""

from dataclasses import dataclass


@dataclass
class ReportPageConfig:
    run: str = ""
    """folder of a run or of a pipeline"""
    also: str = ""
    """folder of another run or pipeline, whose curves and settings are compared with those of `run`"""
    out: str = ""
    """HTML file to write; empty: report.html in the folder `run`"""
    max_mib: float = 14.0
    """size of the file in MiB, at most; rollouts and images that do not fit are left out, and the page counts them"""
    image_pixels: int = 256
    """longer side of an image in the page, at most"""

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("run: expected the folder of a run or of a pipeline, found nothing; set run=runs/NAME")
        if not 1.0 <= self.max_mib <= 512.0:
            raise ValueError(f"max_mib: expected 1 to 512, found {self.max_mib}")
        if not 16 <= self.image_pixels <= 2048:
            raise ValueError(f"image_pixels: expected 16 to 2048, found {self.image_pixels}")
