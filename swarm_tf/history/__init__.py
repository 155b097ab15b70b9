"""What every exchange did, written down by each rank, and the proof over all of them."""
