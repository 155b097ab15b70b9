"""This process as one rank of its job: launcher, signals, deadlines, devices."""
