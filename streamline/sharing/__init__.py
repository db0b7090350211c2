"""How processes, also of several machines, share a folder: claims with a heartbeat."""
