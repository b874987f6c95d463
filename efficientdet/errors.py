"""The exception for mistakes in the config of an EfficientDet."""


class EfficientDetConfigError(ValueError):
    """Names the config key, its value and what it may be, in one line."""
