"""The baselines, one paper per file. Installed as streamline.baselines."""
