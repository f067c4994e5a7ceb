"""What fits on a device and how long it will take, predicted before anything is bought or built."""
