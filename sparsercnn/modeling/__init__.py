"""The detector as mathematics alone: the formulas of the paper, and nothing that is there for speed."""
