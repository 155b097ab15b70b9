"""Other algorithms that train on several ranks, for comparison; one file each."""
