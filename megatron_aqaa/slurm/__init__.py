"""Jobs of a SLURM cluster: batch files, chains of dependent stages, and a look at every node before the first step."""
