"""Run by the tests: several recipes with their flags, each as its own main program, in one process.

Reads a JSON list of pairs, the path of a recipe and its flags.
"""

from __future__ import annotations

import json
import runpy
import sys


for path, flags in json.loads(sys.argv[1]):
    sys.argv = [path, *flags]
    runpy.run_path(path, run_name="__main__")
