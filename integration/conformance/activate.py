"""Starts a program with a listening socket, as systemd or Guardian's launcher would.

    activate.py (systemd|socket2me) PATH PROGRAM ARGUMENT...

The socket is at PATH, or on a port of 127.0.0.1 that is written to PATH when PATH ends in `.port`. With
`systemd` it is descriptor 3 and called `api`.
"""

import os
import socket
import sys

how, path, *command = sys.argv[1:]
if path.endswith(".port"):
    listener = socket.socket(socket.AF_INET)
    listener.bind(("127.0.0.1", 0))
    with open(path, "w", encoding="ascii") as port:
        port.write(str(listener.getsockname()[1]))
else:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
listener.listen(100)
if how == "systemd":
    number = 3
    names = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "api"}
else:
    number = 9
    names = {"SOCKET2ME_FD": "9"}
if listener.fileno() == number:
    os.set_inheritable(number, True)
else:
    os.dup2(listener.fileno(), number, inheritable=True)
os.environ.update(names)
os.execv(command[0], command)
