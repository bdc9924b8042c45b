"""What a plugin author reads: descriptions, the contracts, the hooks."""
