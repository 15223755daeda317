"""Speed and memory against other trainers: ``python -m bench`` prints one table."""
