"""Marks a child writes to its parent: before it looks for a checkpoint, before step 1, around each save, after training."""

from __future__ import annotations

RESUME, TRAIN, SAVE, SAVED, TRAINED = b"PRCcD"
