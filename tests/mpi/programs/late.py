"""Rank 1 is late for a gather; rank 0 reports that in time, and the job ends."""

import time

from swarm_tf.cluster import world

mpi = world.transport()
assert mpi.gather(b"", "before", 60) == [b""] * mpi.size
if mpi.rank == 1:
    time.sleep(100)
began = time.monotonic()
try:
    mpi.gather(b"", "the test", 2)
except TimeoutError:
    assert mpi.rank == 0, "rank 0 must report it"
    assert 2 <= time.monotonic() - began < 6
    print(f"failing at {time.time()}", flush=True)
    raise
print("never", flush=True)
