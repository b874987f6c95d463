"""The protocol behind `tools/compare_necks.py`: trainings that share all but the neck, and what they can tell."""
