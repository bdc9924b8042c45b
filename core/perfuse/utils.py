"""Pictures and videos in and out of files, as ``diffusers.utils`` has them."""

from perfuse.arrays.media import export_to_gif as export_to_gif
from perfuse.arrays.media import export_to_video as export_to_video
from perfuse.arrays.media import load_image as load_image
from perfuse.arrays.media import make_image_grid as make_image_grid

__all__ = ["export_to_gif", "export_to_video", "load_image", "make_image_grid"]
