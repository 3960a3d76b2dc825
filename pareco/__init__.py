"""PareCO: slimmable networks with optimized widths (arXiv 2007.11752)."""
