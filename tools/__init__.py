"""One-purpose command-line programs."""
