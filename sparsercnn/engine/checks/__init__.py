"""What a config must be before a training starts, so that a mistake costs a second and gets one clear line."""
