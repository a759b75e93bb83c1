"""Solvers as Lightning modules: one picture, a study, a mean."""
