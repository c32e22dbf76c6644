"""An S3 server on loopback, in memory: `python s3_server.py` prints its address and runs until its stdin is closed, so
that it ends with the process that started it, however that ends.
"""

import sys

from moto.server import ThreadedMotoServer

if __name__ == "__main__":
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    server.stop()
