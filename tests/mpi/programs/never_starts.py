"""Rank 1 does not start MPI; rank 0 says so in time."""

import time

from swarm_tf import launcher, world

world.START_SECONDS = 3
if launcher.rank() == 1:
    print(f"failing at {time.time()}", flush=True)
    time.sleep(100)
world.transport()
print("never", flush=True)
