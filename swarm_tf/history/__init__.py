"""Each rank's record of what every exchange did, and a check of all records together."""
