"""The hub: commits that a run keeps to, files of models, rows of data sets, and what fails."""
