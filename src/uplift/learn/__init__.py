"""From batches to better weights: the forward pass, its terms, the update, the loop and its state."""
