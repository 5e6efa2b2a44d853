"""Questions to ask of a run: one file, one question. Each returns a frozen dataclass of tensors with named axes."""
