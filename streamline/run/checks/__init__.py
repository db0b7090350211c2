"""What a run's settings are checked for, before anything is loaded or fetched."""
