"""`python -m m2d_bench.evar_adapters FOLDER SCRIPT …`: runs a script of a clone of EVAR for who works in a folder."""

import sys
from pathlib import Path

from m2d_bench.errors import M2DBenchError
from m2d_bench.evar_adapters.clone import run_script

if __name__ == "__main__":
    try:
        run_script(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except M2DBenchError as error:
        sys.exit(f"ERROR: {error}")
