"""Pictures and videos in and out of files, as ``diffusers.utils`` has them."""

from perfuse.arrays.media import export_to_gif, export_to_video, load_image, make_image_grid

__all__ = ["export_to_gif", "export_to_video", "load_image", "make_image_grid"]
