"""Python imports this file by its name at start-up when its folder is on PYTHONPATH: test subprocesses and kernels run without a network too."""

import socket_guard

socket_guard.install()
