"""F: the latent diffusion model."""

import os

from transformers.utils import logging

# transformers tells at import that torchvision is missing, which nothing here needs; a user's own setting wins.
if "TRANSFORMERS_VERBOSITY" not in os.environ:
    logging.set_verbosity_error()
