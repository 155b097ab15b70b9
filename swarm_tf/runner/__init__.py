"""What `train.py` does between its configuration and its summary."""
