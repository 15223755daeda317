"""Vocabulary of Uplift: recipe, seams, run, report, storage, errors. Imports no torch."""
