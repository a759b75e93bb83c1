"""The configuration groups, shipped as the package ``eigenexp.conf``."""
