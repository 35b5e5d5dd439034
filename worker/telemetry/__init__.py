"""What a worker tells monitoring about itself."""
