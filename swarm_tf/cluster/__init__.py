"""This process among the others of its job: launcher, signals, deadlines, devices."""
