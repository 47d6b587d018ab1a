"""Pages, charts and grids of images for people; no module here knows what was trained."""
