"""One file per place to run."""
