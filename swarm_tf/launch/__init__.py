"""Commands: `swarmrun` starts ranks, `swarm-tf doctor` examines them."""
