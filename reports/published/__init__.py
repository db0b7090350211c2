"""The figures that papers printed, as CSV. Installed as streamline.published."""
