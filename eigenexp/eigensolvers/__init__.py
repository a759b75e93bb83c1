"""Eigensolvers for F = JᵀJ, one method a file, all with one ask/tell contract."""
