"""Small data modules that need no download or read original archives."""
