"""Cut the network off in every Python that starts with this folder on PYTHONPATH.

Python imports a module of this name at start-up, so subprocesses of tests and notebook kernels are covered too.
"""

import socket_guard

socket_guard.install()
