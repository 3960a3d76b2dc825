"""PareCO: slimmable networks with optimized widths (arXiv 2007.11752)."""

import warnings

# timm decorates functions with torch.jit.script on import, which new versions of torch deprecate.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
