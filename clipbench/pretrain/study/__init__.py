"""Studies: the same towers trained by several objectives, measured alike, and the papers' claims held against that.

`plan` imports the cards alone, so that a page is written without torch; `training` and `scores` may import everything
below `report`.
"""
