"""What leaves this machine and what comes from others: published files, cards, datasets, push and pull."""
