"""What lies on disk: atomic files, archives, plain containers."""
