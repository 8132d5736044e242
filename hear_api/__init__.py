"""HEAR 2021 common API over the core's encoders. Nothing is here yet."""
