"""What every method that trains shares: result files and run reports."""
