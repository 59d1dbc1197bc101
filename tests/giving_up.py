"""Clients over gRPC that give up on their calls, until they are killed: `giving_up.py ADDRESS`.

A process of their own: where a server ended under a call that was cancelled, the client may wait
for ever (grpc/grpc issue 20026), and then so would whoever has it in the same process.
"""

from __future__ import annotations

import contextlib
import sys
import threading

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from contract import PUBLIC_MODEL, TEXT

_CLIENTS = 8


def main(address: str) -> None:
    """Give up for ever, after half a millisecond to four; a line says that they have begun."""
    request = service_pb2.ModelInferRequest(model_name=PUBLIC_MODEL)
    request.inputs.add(name=TEXT, shape=[1, 1], datatype="BYTES")
    request.raw_input_contents.append(b"\4\0\0\0kind")
    begun = threading.Event()

    def give_up(seconds: float) -> None:
        channel = grpc.insecure_channel(address)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        while True:
            call = stub.ModelInfer.future(request, timeout=seconds)
            if seconds < 0.002:
                call.cancel()
            with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
                call.result()
            begun.set()

    for number in range(_CLIENTS):
        threading.Thread(target=give_up, args=(0.0005 * (number + 1),), daemon=True).start()
    begun.wait()
    print("begun", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
