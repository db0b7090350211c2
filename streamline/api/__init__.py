"""The public face, and the stages that it and a run are made of."""
