"""Several processes at one solve: ranks, where they meet, what they exchange."""
