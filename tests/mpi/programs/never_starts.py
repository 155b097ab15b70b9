"""Rank 1 does not start MPI; rank 0 reports that in time."""

import time

from swarm_tf.cluster import environment, world

world.START_SECONDS = 3
if environment.rank() == 1:
    print(f"failing at {time.time()}", flush=True)
    time.sleep(100)
world.transport()
print("never", flush=True)
