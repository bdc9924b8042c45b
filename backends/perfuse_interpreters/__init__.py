"""Programs of engines whose hardware is elsewhere, computed on any machine."""
