"""The parts of `train.py`: flags, validation, the run, metrics and the summary."""
