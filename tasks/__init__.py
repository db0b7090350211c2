"""lm-eval task files. Installed as streamline.tasks."""
