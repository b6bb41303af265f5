"""``python -m pfray.inspect``: the command ``pfray inspect``, which is ``workflow/inspection.py``.

The name ``pfray.inspect`` belongs to the function of ``api.py``, so nothing imports this module.
"""

from __future__ import annotations

import sys

from pfray.utils import command

if __name__ == "__main__":
    command.begin()  # before the slow import below, because a user may press Ctrl-C during it

    from pfray.workflow.inspection import main

    sys.exit(main())
