"""Acceptance experiments: what each technique is worth, with paired seeds, tuned baselines and placebos."""
