"""COCO metrics and test-time augmentation."""
