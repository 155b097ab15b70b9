"""The exchange of two models, without I/O, threads or a clock: messages in, messages out."""
