"""What two or more of the scripts share: images and tokens as data, checkpoints, run folders, metrics, plots.

Nothing here is a stage of its own; the stages are the scripts at the top of the repository.
"""
