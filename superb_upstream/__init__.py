"""SUPERB (s3prl) upstreams over the core's encoders. Nothing is here yet."""
