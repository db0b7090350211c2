"""Parts of a run's cells, worked side by side by processes that share its folder."""
