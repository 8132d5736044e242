"""What both trainings share: recipes, schedules, augmentation, the log, devices and the loop."""
