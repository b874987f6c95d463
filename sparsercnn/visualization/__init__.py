"""Drawing, and pictures and videos in and out."""
