"""Fine-tuning of encoders of images: the image experiments of M2D (2023), appendix A."""
