"""`python -m swarm_tf.history DIR`; see check.py."""

from swarm_tf.history.check import main

main()
