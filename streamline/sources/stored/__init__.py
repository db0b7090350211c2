"""Where stored weights lie, and which of them are one tensor of the model."""
