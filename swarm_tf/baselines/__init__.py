"""Other ways to train on several ranks, to race against; one file each."""
