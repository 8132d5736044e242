"""The folder that a pull request to s3prl copies to s3prl/upstream/m2d."""
