"""Commands: `swarmrun` starts ranks, `swarm-tf doctor` checks what they need."""
