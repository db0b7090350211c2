"""Layer modules and the model class that travel in checkpoints; these files stand alone."""
