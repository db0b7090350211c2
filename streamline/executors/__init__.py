"""Where the cells of a run are worked: in this process, or spread out."""
