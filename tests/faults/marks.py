"""Marks a child writes: before it looks for a checkpoint, before training, in each step, around each save, after training."""

from __future__ import annotations

RESUME, TRAIN, STEP, SAVE, SAVED, TRAINED = b"PRsCcD"
