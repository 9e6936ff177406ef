"""Messages of containerd's and the CRI's gRPC services, as far as parbake speaks them.

The ``.proto`` files are written for parbake: they hold the fields that it reads or writes, with the numbers that
containerd's API (``api/services``) and the CRI (``runtime.v1``) gave them; unknown fields are ignored or kept by
protobuf itself. Package names are our own, so that they clash with no other library in the process: only field numbers
and method paths travel. ``make proto`` regenerates the ``*_pb2`` modules.
"""
