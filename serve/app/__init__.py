"""The application beside the servers: other APIs' requests in, the served model's scores out.

`create_app` (serve/app/factory.py) makes it; `make serve` runs it behind haproxy, over a socket
that only the user can open.
"""
