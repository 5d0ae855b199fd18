"""`thurl` commands one after the other in one process; importing the client of the Hub is most of their cost.

Reads lines of JSON, `[arguments, environment]`; answers with `[exit code, standard output, standard error]`.
"""

import contextlib
import io
import json
import os
import sys

from thurl.cli import main


for line in sys.stdin:
    arguments, environment = json.loads(line)
    sys.argv = ["thurl", *arguments]
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as error:
            code = error.code
    sys.__stdout__.write(json.dumps([code, out.getvalue(), err.getvalue()]) + "\n")
    sys.__stdout__.flush()
