"""Parts of encoders that families share."""
