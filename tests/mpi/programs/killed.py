"""All ranks are killed once they have met, but not in a job of Slurm that was requeued."""

import os
import signal

from swarm_tf.cluster import world

world.gather(None, "the test")
if "SLURM_RESTART_COUNT" not in os.environ:
    os.kill(os.getpid(), signal.SIGKILL)
print(f"rank {world.rank()} passed", flush=True)
