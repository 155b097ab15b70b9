"""How messages move: threads in one process (`local`) or MPI (`mpi`)."""
