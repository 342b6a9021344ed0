"""Our server beside its peers: `python -m serving.run` in the folder above."""
