"""Certificates: true residuals, the search for missed pairs, bounds, and the result."""
