"""Data sets packed into few large files, with an index and checksums: `hydra-trainer data pack`."""
