"""`neuroimagen evaluate ...` as a rank of the tests: KID in blocks so small that these runs have several of them.

Its second process sees a file system that shows the end of the run late.
"""

import os
import sys
from pathlib import Path

from neuroimagen.cli import main
from neuroimagen.scores import similarity

KID_ROWS = 5

if __name__ == "__main__":
    similarity.KID_ROWS = KID_ROWS
    if os.environ["RANK"] == "1":
        exists = Path.exists
        Path.exists = lambda self, **how: self.name != "DONE" and exists(self, **how)  # type: ignore[method-assign]
    sys.exit(main(["evaluate", *sys.argv[1:]]))
