"""Version 1 of the wire contract. Generated from the .proto files beside it by `make protos`."""
