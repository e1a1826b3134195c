"""A protoc plugin for Python's gRPC stubs: grpcio-tools has the generator, but only inside a protoc of its own."""

import pathlib
import sys
import tempfile

from google.protobuf import descriptor_pb2
from google.protobuf.compiler import plugin_pb2
from grpc_tools import protoc

request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
response = plugin_pb2.CodeGeneratorResponse(supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL)
with tempfile.TemporaryDirectory() as folder:
    contracts, out = pathlib.Path(folder, "contracts.binpb"), pathlib.Path(folder, "out")
    out.mkdir()
    contracts.write_bytes(descriptor_pb2.FileDescriptorSet(file=request.proto_file).SerializeToString())
    arguments = ["protoc", f"--descriptor_set_in={contracts}", f"--grpc_python_out={request.parameter}:{out}", *request.file_to_generate]
    if protoc.main(arguments) != 0:
        sys.exit("the stubs could not be generated")
    for stub in sorted(out.rglob("*.py")):
        response.file.add(name=str(stub.relative_to(out)), content=stub.read_text())
sys.stdout.buffer.write(response.SerializeToString())
