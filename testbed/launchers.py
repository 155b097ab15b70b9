"""What launchers other than swarmrun need for several ranks on a small machine."""

OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
"""Variables that let Open MPI 4 and 5 run as root and start more ranks than cores."""

BINDING = "--bind-to none --map-by slot:oversubscribe"
"""Arguments of Open MPI's mpirun that let ranks share cores."""
