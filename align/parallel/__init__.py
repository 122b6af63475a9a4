"""Work in shards, and who does it: processes, Ray, arrays of SLURM jobs."""
