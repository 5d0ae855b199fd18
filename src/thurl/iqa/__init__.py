"""Image quality assessment by other means than a vision-language model."""
