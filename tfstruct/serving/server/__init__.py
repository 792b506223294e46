"""`tfstruct-serve`: the interfaces of TensorFlow Serving, gRPC and REST, in Python.

For development, tests, and machines for which there is no TensorFlow Serving. It is no rival of it: one Python process
passes on every request, it knows neither TLS nor authentication, and it serves only bundles of this library.
"""
