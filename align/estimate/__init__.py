"""What a stage takes of a GPU, of the disk and of time, before it runs: docs/estimate.md."""
